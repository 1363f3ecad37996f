//! What the ledger's runtime asks of the place where accounts live, be it a local file or Redis; and what the registry asks of the place
//! where its book is kept.

use std::{collections::BTreeMap, path::PathBuf, pin::Pin, sync::Arc};

use crate::{
    ledger::{
        account::AccountState,
        sync::{RowId, SyncReply, SyncRequest},
    },
    wire::revision::{Head, Revision},
};

/// A store's answer, some time later.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a store gave no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It cannot be reached, is full, read-only or too slow. Trying again later may help.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// What it holds cannot be read. Someone must look at it.
    #[error("the store is damaged: {0}")]
    Damaged(String),
    /// Another process uses the same data directory.
    #[error("{} is in use by another process; stop it, or set another data_dir", .0.display())]
    Locked(PathBuf),
}

/// One report for one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountSync {
    /// The account's key: budget/scope/period.
    pub account: Arc<str>,
    /// The report.
    pub request: SyncRequest,
}

/// One account as the store knows it, for listings; amounts in nano-USD.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAccount {
    /// The account's key: budget/scope/period.
    pub account: Arc<str>,
    /// The limit in force.
    pub limit: u64,
    /// Granted to purses and not returned: spent, or held.
    pub held: u64,
    /// Known to be spent, without debt.
    pub charged: u64,
    /// Spent beyond purses.
    pub debt: u64,
    /// Given back by operators of what was spent.
    pub credited: u64,
    /// Not all of it can be read: its calls are refused until an operator rebuilds it.
    pub damaged: bool,
}

/// What a store holds under an account's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Missing,
    /// The account, and what operators noted on its rows.
    Whole(AccountState, BTreeMap<RowId, String>),
    /// Something that was not written by the ledger, or was changed by something else.
    Damaged(Damaged),
}

/// What can still be read of a damaged account.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damaged {
    /// All that is there.
    pub fields: BTreeMap<String, String>,
    /// What of it makes sense; the rest as of an account without rows.
    pub readable: AccountState,
    /// Names of fields that are missing or make no sense.
    pub unreadable: Vec<String>,
}

/// Where the truth about accounts lives.
pub trait Authority: Send + Sync {
    /// Merges each report into its account and grants what is free: [`crate::ledger::account::sync`], durably, before the
    /// answer. Replies stand in the order of the requests. Idempotent: after an error, it is not known which requests took
    /// effect, and sending them again is right. Where only a part of the store is away, only the requests that it concerns
    /// get an error.
    ///
    /// An account is opened by a report that may create it; limit and version travel with every report. No report at all
    /// only finds out whether the authority answers.
    fn sync(&self, requests: Vec<AccountSync>) -> Answer<'_, Vec<Result<SyncReply, StoreError>>>;

    /// Whether no part of it is away, as far as is known.
    fn is_whole(&self) -> bool {
        true
    }

    /// Accounts in the order of their keys, beginning after `after`, at most `count_max` of them.
    fn accounts(&self, after: Option<Arc<str>>, count_max: usize) -> Answer<'_, Vec<StoredAccount>>;

    /// All that is known of one account.
    fn look_up(&self, account: Arc<str>) -> Answer<'_, Held>;

    /// Writes an operator's note on a row of an account that exists, in the place of an earlier one.
    fn note(&self, account: Arc<str>, row: RowId, text: String) -> Answer<'_, ()>;

    /// Puts `state` in the place of an account that is missing (no fields) or damaged (exactly these fields); `false` when
    /// something else is there by now.
    fn replace(&self, account: Arc<str>, damaged: BTreeMap<String, String>, state: AccountState) -> Answer<'_, bool>;
}

/// What became of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushOutcome {
    /// It is live.
    Pushed,
    /// Another revision is live than the one that it is based on; `None` when there is none at all.
    Stale(Option<Head>),
}

/// Where the registry's book is kept: revisions that never change, and a head that says which one is live.
pub trait BookStore: Send + Sync {
    /// What is live; `None` when nothing was ever pushed.
    fn head(&self) -> Answer<'_, Option<Head>>;

    /// One revision; `None` when there is none of that number, or no longer.
    fn revision(&self, number: u64) -> Answer<'_, Option<Revision>>;

    /// Stores a revision durably and makes it live, if `base` still is. After [`StoreError::Unavailable`] it is not known whether it
    /// is live.
    fn push(&self, base: Option<Head>, revision: Revision) -> Answer<'_, PushOutcome>;

    /// At most `count` revisions, the newest first, from `newest` on. Those that cannot be read are left out.
    fn history(&self, newest: u64, count: u64) -> Answer<'_, Vec<Revision>>;
}

/// Revisions of a book that are kept; with the audit log, older ones are not needed.
pub const BOOKS_KEPT: u64 = 200;
