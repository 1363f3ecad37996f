//! What calls cost, by the prices that the gateway itself uses: those of the configuration at hand, or else the built-in catalog.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    config::{Snapshot, snapshot::Unpriced},
    policy::pricing::{Catalog, Price},
    units::NanoUsd,
    wire::{openai::reply, usage::Usage},
};

/// Prices.
#[derive(Debug, Clone, Default)]
pub struct Prices {
    /// The configuration at hand, which need not be that of the gateway that is asked.
    pub configuration: Option<Arc<Snapshot>>,
}

impl Prices {
    /// The price of `provider/model`, as in `x-tollgate-model`.
    #[must_use]
    pub fn of_target(&self, target: &str) -> Option<Arc<Price>> {
        let (provider, model) = target.split_once('/')?;
        let Some(snapshot) = &self.configuration else {
            return Catalog::builtin().find(provider, Some(provider), model);
        };
        let known = snapshot.providers.contains_key(provider);
        let price = known.then(|| snapshot.target(target)?.target.price.clone()).flatten();
        price.or_else(|| snapshot.prices.find(provider, Some(provider), model)).or_else(|| match &snapshot.unpriced {
            Unpriced::Charge(price) => Some(price.clone()),
            Unpriced::Refuse => None,
        })
    }

    /// The likely price of a model as clients name it: an alias goes to its first target.
    #[must_use]
    pub fn of_named(&self, named: &str) -> Option<Arc<Price>> {
        let snapshot = self.configuration.as_deref();
        let (alias, pinned) = named.split_once('@').map_or((named, None), |(alias, version)| (alias, Some(version)));
        let version = snapshot.and_then(|snapshot| {
            let model = snapshot.models.get(alias)?;
            model.versions.get(pinned.unwrap_or(&model.live))
        });
        match (version, snapshot) {
            (Some(version), _) => {
                let target = &version.targets.first()?.0;
                self.of_target(&format!("{}/{}", target.provider.name, target.model))
            }
            (None, Some(snapshot)) => {
                let target = &snapshot.target(named)?.target;
                self.of_target(&format!("{}/{}", target.provider.name, target.model))
            }
            (None, None) => self.of_target(named),
        }
    }

    /// What a reply cost: the gateway's own word where it gives one, else its usage at the price of what served it.
    #[must_use]
    pub fn of_reply(&self, said: Option<&str>, served: Option<&str>, body: &Value, at: Timestamp) -> Spent {
        let usage = reply::usage(body["usage"].to_string().as_bytes()).and_then(Result::ok);
        let said = said.and_then(|usd| format!("{usd} USD").parse::<NanoUsd>().ok());
        let priced = || Some(self.of_target(served?)?.cost(&usage?, body["service_tier"].as_str(), at));
        Spent { usage, cost: said.or_else(priced) }
    }
}

/// What a reply took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spent {
    /// Tokens; `None` where the reply does not say.
    pub usage: Option<Usage>,
    /// Money; `None` where that cannot be known.
    pub cost: Option<NanoUsd>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_reply_costs_its_usage_at_the_price_of_what_served_it() {
        let prices = Prices::default();
        let body = json!({"usage": {"prompt_tokens": 1000, "completion_tokens": 500}});
        let at = "2026-11-23T12:00:00Z".parse().unwrap();
        let spent = prices.of_reply(None, Some("openai/gpt-4o-mini"), &body, at);
        // 0.15 and 0.60 USD per million.
        assert_eq!(spent.cost, Some(NanoUsd(1000 * 150 + 500 * 600)));
        assert_eq!(prices.of_reply(None, Some("nobody/none"), &body, at).cost, None);
        assert_eq!(prices.of_reply(None, None, &body, at).cost, None);
        assert_eq!(prices.of_reply(None, Some("openai/gpt-4o-mini"), &json!({}), at).cost, None);
        assert_eq!(prices.of_reply(Some("0.5"), None, &json!({}), at).cost, Some(NanoUsd(500_000_000)));
    }
}
