//! The scorer `tool_call`: whether the answer calls the tools that were expected.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Score, shortened, values::same};
use crate::eval::answer::{Answer, ToolCall};

/// The answer calls the expected tools with the expected arguments. Expected is `{name: …, arguments: {…}}`, a list of such, or a
/// tool's name; an empty list: no tool at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ToolCalls {
    /// How arguments are compared. Default: exact.
    pub arguments: Arguments,
    /// The calls may come in any order.
    pub any_order: bool,
    /// Further calls may be made beside the expected ones.
    pub allow_more: bool,
}

/// How arguments are compared.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Arguments {
    /// They must be the same.
    #[default]
    Exact,
    /// Those expected must be there; there may be more.
    Subset,
    /// Not at all.
    Ignore,
}

impl ToolCalls {
    pub(super) fn score(&self, expected: &Value, answer: &Answer) -> Score {
        let Some(wanted) = calls_of(expected) else {
            return Score::missing("expected is no tool call: write `{ name: …, arguments: { … } }`");
        };
        let made = &answer.tool_calls;
        if !self.allow_more && made.len() != wanted.len() {
            return Score::failed(format!("called {}, expected {}", named(made), named(&wanted)));
        }
        let found = if self.any_order { self.all_somewhere(&wanted, made) } else { self.all_in_order(&wanted, made) };
        match found {
            Ok(()) => Score::passed(),
            Err(missing) => Score::failed(format!("no call of {}; called {}", shown(missing), named(made))),
        }
    }

    /// The first expected call that does not come after the one before.
    fn all_in_order<'w>(&self, wanted: &'w [ToolCall], made: &[ToolCall]) -> Result<(), &'w ToolCall> {
        let mut rest = made.iter();
        wanted.iter().try_for_each(|wanted| rest.find(|call| self.is_met(wanted, call)).map(drop).ok_or(wanted))
    }

    /// Each expected call takes another one of those made. Which one matters where one meets several, so the choice can be undone.
    fn all_somewhere<'w>(&self, wanted: &'w [ToolCall], made: &[ToolCall]) -> Result<(), &'w ToolCall> {
        let mut taken_by: Vec<Option<usize>> = vec![None; made.len()];
        for (i, call) in wanted.iter().enumerate() {
            let mut visited = vec![false; made.len()];
            if !self.place(i, wanted, made, &mut taken_by, &mut visited) {
                return Err(call);
            }
        }
        Ok(())
    }

    /// An augmenting path of a bipartite matching.
    fn place(
        &self,
        i: usize,
        wanted: &[ToolCall],
        made: &[ToolCall],
        taken_by: &mut [Option<usize>],
        visited: &mut [bool],
    ) -> bool {
        for j in 0..made.len() {
            if visited[j] || !self.is_met(&wanted[i], &made[j]) {
                continue;
            }
            visited[j] = true;
            if taken_by[j].is_none_or(|other| self.place(other, wanted, made, taken_by, visited)) {
                taken_by[j] = Some(i);
                return true;
            }
        }
        false
    }

    fn is_met(&self, wanted: &ToolCall, made: &ToolCall) -> bool {
        wanted.name == made.name
            && match self.arguments {
                Arguments::Ignore => true,
                Arguments::Exact => same(&wanted.arguments, &made.arguments),
                Arguments::Subset => is_part(&wanted.arguments, &made.arguments),
            }
    }
}

/// Whether `whole` has all that `part` has.
fn is_part(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => {
            part.iter().all(|(key, value)| whole.get(key).is_some_and(|other| is_part(value, other)))
        }
        (part, whole) => same(part, whole),
    }
}

fn calls_of(expected: &Value) -> Option<Vec<ToolCall>> {
    match expected {
        Value::Array(calls) => calls.iter().map(call_of).collect(),
        one => call_of(one).map(|call| vec![call]),
    }
}

fn call_of(expected: &Value) -> Option<ToolCall> {
    if let Some(name) = expected.as_str() {
        return Some(ToolCall { name: name.to_owned(), arguments: Value::Object(Default::default()) });
    }
    let name = expected["name"].as_str()?.to_owned();
    let arguments = expected.get("arguments").cloned().unwrap_or_else(|| Value::Object(Default::default()));
    Some(ToolCall { name, arguments })
}

fn named(calls: &[ToolCall]) -> String {
    match calls {
        [] => "no tool".to_owned(),
        calls => calls.iter().map(|call| call.name.as_str()).collect::<Vec<_>>().join(", "),
    }
}

fn shown(call: &ToolCall) -> String {
    format!("{}({})", call.name, shortened(&call.arguments.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(calls: &[(&str, Value)]) -> Answer {
        let call =
            |(name, arguments): &(&str, Value)| ToolCall { name: (*name).to_owned(), arguments: arguments.clone() };
        Answer { tool_calls: calls.iter().map(call).collect(), ..Answer::default() }
    }

    #[test]
    fn calls_are_compared_by_name_arguments_and_order() {
        let exact = ToolCalls::default();
        let subset = ToolCalls { arguments: Arguments::Subset, ..exact.clone() };
        let names = ToolCalls { arguments: Arguments::Ignore, ..exact.clone() };
        let free = ToolCalls { any_order: true, ..exact.clone() };
        let more = ToolCalls { allow_more: true, ..exact.clone() };
        let both = [("a", json!({"x": 1})), ("b", json!({"y": {"z": 2, "w": 3}}))];
        let a = json!({"name": "a", "arguments": {"x": 1.0}});
        let b = json!({"name": "b", "arguments": {"y": {"z": 2}}});
        for (scorer, expected, calls, pass) in [
            (&exact, a.clone(), &both[..1], Some(true)),
            (&exact, a.clone(), &both[..], Some(false)),
            (&more, a.clone(), &both[..], Some(true)),
            (&exact, b.clone(), &both[1..], Some(false)),
            (&subset, b.clone(), &both[1..], Some(true)),
            (&subset, json!([a, b]), &both[..], Some(true)),
            (&subset, json!([b, a]), &both[..], Some(false)),
            (&names, json!(["a", "b"]), &both[..], Some(true)),
            (&free, json!([{"name": "b", "arguments": {"y": {"z": 2, "w": 3}}}, a]), &both[..], Some(true)),
            (&exact, json!([]), &[][..], Some(true)),
            (&exact, json!([]), &both[..], Some(false)),
            (&exact, json!(7), &both[..], None),
        ] {
            assert_eq!(scorer.score(&expected, &answer(calls)).pass, pass, "{scorer:?} {expected}");
        }
    }

    #[test]
    fn in_any_order_an_early_choice_is_undone_where_it_must_be() {
        let scorer = ToolCalls { arguments: Arguments::Subset, any_order: true, ..ToolCalls::default() };
        let expected = json!([{"name": "a"}, {"name": "a", "arguments": {"x": 1}}]);
        let made = answer(&[("a", json!({"x": 1})), ("a", json!({}))]);
        assert_eq!(scorer.score(&expected, &made).pass, Some(true));
    }
}
