//! `tollgate eval replay`: recorded calls, with the answers that they got, against a candidate.

use anyhow::anyhow;
use clap::Args;

use super::{Failure, RunOptions, run};
use crate::{
    config::forms::DurationText,
    eval::{
        gates::Gate,
        scorers::{
            Named, Scorer,
            judge::Judge,
            similar::{EditSimilarity, RougeL},
        },
        suite::{Calls, Candidate, Suite},
    },
    record::Outcome,
    units::NanoUsd,
};

/// The candidate whose answers are those of the log.
const RECORDED: &str = "recorded";
/// What a judge goes by where no rubric is given.
const RUBRIC: &str =
    "The answer is correct, complete and helpful for what was asked, and no longer than it needs to be.";

/// Which calls, and who answers them anew.
#[derive(Debug, Args)]
pub struct ReplayArguments {
    /// Calls of this model
    #[arg(long)]
    model: Option<String>,
    /// Not older than this: 30m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::cli::duration)]
    since: DurationText,
    /// With a tag
    #[arg(long, value_name = "NAME=VALUE")]
    tag: Option<String>,
    /// At most so many, the latest first
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    limit: usize,
    /// Who answers them anew: an alias, alias@version or provider/model
    #[arg(long, value_name = "MODEL")]
    candidate: String,
    /// With this prompt of the registry, instead of the model's own
    #[arg(long, value_name = "NAME[@VERSION]")]
    prompt: Option<String>,
    /// How near the new answer is to the recorded one: edit_similarity, rouge_l; may be given twice
    #[arg(long, value_name = "SCORER", default_value = "edit_similarity")]
    scorer: Vec<String>,
    /// A model that says which of the two answers is better
    #[arg(long, value_name = "MODEL")]
    judge: Option<String>,
    /// What the judge goes by
    #[arg(long, value_name = "TEXT", requires = "judge")]
    rubric: Option<String>,
    /// What must hold, such as "cost_per_call no worse than baseline by 10%"; may be given again
    #[arg(long, value_name = "SENTENCE")]
    gate: Vec<String>,
    /// Calls at the same time
    #[arg(long, value_name = "COUNT", default_value_t = 4)]
    concurrency: usize,
    /// End before it costs more: "0.50 USD"
    #[arg(long, value_name = "AMOUNT")]
    max_cost: Option<NanoUsd>,
    #[command(flatten)]
    options: RunOptions,
}

/// Replays; whether all gates hold.
pub(super) async fn replay(arguments: &ReplayArguments) -> Result<bool, Failure> {
    let suite = suite(arguments).map_err(|why| Failure::wrong(anyhow!(why)))?;
    run::of_suite(suite, &arguments.options).await
}

/// The suite that the arguments make up.
fn suite(arguments: &ReplayArguments) -> Result<Suite, String> {
    let scorers = scorers(arguments)?;
    let candidates = vec![
        candidate(RECORDED, "", None),
        candidate(&arguments.candidate, &arguments.candidate, arguments.prompt.clone()),
    ];
    let ids: Vec<&str> = scorers.iter().map(|named| named.id.as_str()).collect();
    let names: Vec<&str> = candidates.iter().map(|candidate| candidate.name.as_str()).collect();
    let gate = |sentence: &String| Gate::parse(sentence).and_then(|gate| gate.check_names(&ids, &names).map(|()| gate));
    let gates = arguments.gate.iter().map(gate).collect::<Result<Vec<Gate>, String>>()?;
    let tag = arguments.tag.as_ref().map(|tag| {
        let pair = tag.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        pair.ok_or_else(|| format!("`{tag}` is no NAME=VALUE"))
    });
    let calls = Calls {
        model: arguments.model.clone(),
        since: Some(arguments.since.0),
        outcome: Outcome::Ok,
        tag: tag.transpose()?,
        limit: arguments.limit.max(1),
    };
    Ok(Suite {
        name: format!("replay-{}", arguments.model.as_deref().unwrap_or("all")),
        cases: Vec::new(),
        calls: Some(calls),
        candidates,
        baseline: 0,
        scorers,
        gates,
        repeat: 1,
        concurrency: arguments.concurrency.clamp(1, 256),
        max_cost: arguments.max_cost,
        timeout: std::time::Duration::from_secs(120),
        url: None,
        key: None,
        mlflow: None,
    })
}

fn candidate(name: &str, model: &str, prompt: Option<String>) -> Candidate {
    Candidate {
        name: name.to_owned(),
        model: model.to_owned(),
        prompt,
        parameters: serde_json::Map::new(),
        system: None,
        recorded: model.is_empty(),
    }
}

fn scorers(arguments: &ReplayArguments) -> Result<Vec<Named>, String> {
    let similar = |word: &String| match word.as_str() {
        "edit_similarity" => Ok(Scorer::EditSimilarity(EditSimilarity::default())),
        "rouge_l" => Ok(Scorer::RougeL(RougeL::default())),
        other => Err(format!("`{other}` does not compare two answers; known: edit_similarity, rouge_l")),
    };
    let mut scorers = arguments.scorer.iter().map(similar).collect::<Result<Vec<Scorer>, String>>()?;
    if let Some(model) = &arguments.judge {
        let rubric = arguments.rubric.clone().unwrap_or_else(|| RUBRIC.to_owned());
        scorers.push(Scorer::Judge(Judge { model: model.clone(), rubric, pairwise: true, ..Judge::default() }));
    }
    scorers.extend([Scorer::Latency(None), Scorer::Cost(None)]);
    // Nothing is right or wrong here: an answer that differs may be the better one.
    let lenient = |scorer| Named { threshold: 0.0, ..Named::plain(scorer) };
    let mut named: Vec<Named> = scorers.into_iter().map(lenient).collect();
    named.dedup_by(|one, other| one.id == other.id);
    Ok(named)
}
