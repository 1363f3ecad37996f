//! What may happen in a run of the model, how often, and which rule of the protocol is left out.

/// Gateways in every scenario.
pub(crate) const GATEWAYS: usize = 3;

/// What may happen and how often. Amounts are units of money: the arithmetic does not care what a unit is worth.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// The limit at first.
    pub(crate) limit: u64,
    /// The limit that gateways may adopt later, each when it likes.
    pub(crate) next_limit: Option<u64>,
    /// Messages on the way at once; with one more, one of them is lost. Until then each can arrive any number of times.
    pub(crate) messages: usize,
    /// How often each of these may happen.
    pub(crate) times: Times,
    /// A grant is told once the replica has it (`ledger.wait_replicas`).
    pub(crate) wait: bool,
    /// A gateway gives a report up before it makes the next one: no answer comes later than that.
    pub(crate) one_flight: bool,
    /// A replica is promoted only when it knows the account, however little of it.
    pub(crate) known_account: bool,
    /// A store that listens grants again only after all holders were heard.
    pub(crate) all_return: bool,
    /// The rule that is left out, to see that it is needed.
    pub(crate) without: Option<Rule>,
}

/// How often each event may happen in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) reports: u8,
    pub(crate) calls: u8,
    /// Calls on credit or with a cost above their bound.
    pub(crate) debts: u8,
    /// With a journal, and without one.
    pub(crate) crashes: u8,
    pub(crate) failovers: u8,
    pub(crate) wipes: u8,
    /// Silent purses that someone declares spent.
    pub(crate) reclaims: u8,
    /// Twenty seconds without an event: all time windows pass.
    pub(crate) pauses: u8,
}

/// A rule of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// What a silent gateway holds stays spent.
    NoExpiry,
    /// A call whose client left is charged.
    NoRefund,
    /// A grant that too few replicas have is not told.
    WithheldGrants,
    /// What is told again is written again, or `WAIT` on a new connection waits for nothing.
    RewrittenGrants,
    /// An account that is missing from an emptied store, or from a new primary, is not a new one.
    NeverStartedFull,
    /// Reports are totals.
    Totals,
    /// A new server listens before it grants.
    Learning,
}

impl Scenario {
    /// A network that loses, repeats and reorders, and nothing else.
    pub(crate) const fn new(name: &'static str) -> Scenario {
        let times =
            Times { reports: 3, calls: 2, debts: 0, crashes: 0, failovers: 0, wipes: 0, reclaims: 0, pauses: 0 };
        Scenario {
            name,
            limit: 2,
            next_limit: None,
            messages: 2,
            times,
            wait: false,
            one_flight: false,
            known_account: true,
            all_return: true,
            without: None,
        }
    }

    pub(crate) fn lacks(&self, rule: Rule) -> bool {
        self.without == Some(rule)
    }
}
