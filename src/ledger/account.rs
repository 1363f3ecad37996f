//! One account's truth: what the authority stores, and its one operation as a pure function.
//!
//! Every authority does exactly this, in a transaction of its own: the embedded store calls [`sync`], the Redis function
//! mirrors it line by line. No lease expires: what a silent purse holds counts as spent until it, its journal or an operator
//! says otherwise, since calls may settle after any expiry.

use std::collections::BTreeMap;

use super::sync::{Close, Merged, NANO_USD_MAX, RowId, SyncReply, SyncRequest, Totals};

/// A purse that has not been heard of for this long is not waited for, and not counted when leases are sized.
const ACTIVE_MS: u64 = 10_000;
/// How long others are asked to hand money back after a purse went short.
const STARVING_MS: u64 = 3_000;
/// A closed row is kept apart this long, so that late messages of its purse find it. A later one would start a second row:
/// counted twice, never too little.
const ARCHIVE_MS: u64 = 3_600_000;

/// An operator may reclaim what a purse holds once it was silent for this long, or for four times as long as a replaced server
/// listens, if that is longer: a purse that holds anything reports at each sync.
const SILENT_MS: u64 = 30_000;

/// The state of one account: one limit in one period.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AccountState {
    /// Nano-USD that may be spent.
    pub limit: u64,
    /// The higher version wins.
    pub limit_version: u64,
    /// The server that wrote this state; another one learns before it grants.
    pub run: String,
    /// Nothing is granted before this instant.
    pub learn_until_ms: u64,
    /// A purse for which others hand money back. One at a time: of two that each hold half of what they need, one gets it.
    pub starving: Option<Starving>,
    /// Spent by rows that are no longer kept apart.
    pub archived_charged: u64,
    /// Debt of rows that are no longer kept apart.
    pub archived_debt: u64,
    /// One row per purse.
    pub rows: BTreeMap<RowId, Row>,
}

/// A purse that is short of what its calls wait for, while others hold money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Starving {
    /// Which.
    pub row: RowId,
    /// Nano-USD that it lacks; kept for it.
    pub lacking: u64,
    /// When others need not wait for it any more.
    pub until_ms: u64,
}

/// What the account knows of one purse.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Row {
    /// Its latest totals.
    pub totals: Totals,
    /// When it was last heard of, to within half of the time that counts as active.
    pub seen_ms: u64,
    /// When its last report came; such a row is granted nothing more.
    pub closed_ms: Option<u64>,
}

/// What the authority knows besides the account.
#[derive(Debug, Clone, Copy)]
pub struct Server<'a> {
    /// Its clock, milliseconds since 1970. Used for pacing only: no promise about money rests on it.
    pub now_ms: u64,
    /// Changes when the server was replaced by one that may have missed writes.
    pub run: &'a str,
    /// How long a replaced server listens before it grants: at least three sync intervals.
    pub learn_ms: u64,
    /// The server has lost all it held, not longer ago than that: an account that is new to it may have been in use.
    pub wiped: bool,
}

/// Merges one report into an account and grants what is free, up to the report's target.
///
/// Idempotent, and harmless when repeated late. `state` is `None` for an account that does not exist.
pub fn sync(state: &mut Option<AccountState>, request: &SyncRequest, server: Server<'_>) -> SyncReply {
    if request.row.is_credit() {
        return credit(state.as_mut(), request, server);
    }
    let known = state.as_ref().and_then(|state| state.rows.get(&request.row)).copied().unwrap_or_default();
    let merged = known.totals.merge(request.totals);
    if known.closed_ms.is_none() && !merged.are_sound() {
        return SyncReply::BadReport;
    }
    if state.is_none() && !request.create {
        return SyncReply::NoAccount;
    }
    let account = state.get_or_insert_with(|| AccountState::create(request, server));
    account.meet(server);
    account.take_limit(request);
    match (request.close, known.closed_ms) {
        (_, Some(_)) => account.book_late(request),
        (Some(Close::Reclaimed), None) => account.reclaim(request, merged, server),
        (_, None) => {
            account.merge_row(request, merged, server.now_ms);
            account.grant(request, server.now_ms);
        }
    }
    account.archive(server.now_ms);
    SyncReply::Merged(account.reply_to(request.row, server.now_ms))
}

/// Gives back what was spent: as much more may be. Never more than was spent, and each note once, whatever a repetition says.
fn credit(account: Option<&mut AccountState>, request: &SyncRequest, server: Server<'_>) -> SyncReply {
    let Some(account) = account else { return SyncReply::NoAccount };
    let amount = request.totals.returned;
    if !account.rows.contains_key(&request.row) {
        let spent = add(account.charged(), account.debt());
        let is_note = request.totals == Totals { granted: amount, returned: amount, charged: 0, debt: 0 };
        if !is_note || amount > spent.saturating_sub(account.credited()) {
            return SyncReply::BadReport;
        }
        let row = Row { totals: request.totals, seen_ms: server.now_ms, closed_ms: Some(server.now_ms) };
        account.rows.insert(request.row, row);
    }
    account.meet(server);
    SyncReply::Merged(account.reply_to(request.row, server.now_ms))
}

// === impl AccountState ===

impl AccountState {
    /// A new account. One that was in use before is being restored by its holders: it listens to all of them first.
    fn create(request: &SyncRequest, server: Server<'_>) -> AccountState {
        let may_be_in_use = server.wiped || request.totals != Totals::default();
        AccountState {
            limit: request.limit.min(NANO_USD_MAX),
            limit_version: request.limit_version,
            run: server.run.to_owned(),
            learn_until_ms: if may_be_in_use { server.now_ms.saturating_add(server.learn_ms) } else { 0 },
            ..AccountState::default()
        }
    }

    fn meet(&mut self, server: Server<'_>) {
        if self.run != server.run {
            server.run.clone_into(&mut self.run);
            self.learn_until_ms = server.now_ms.saturating_add(server.learn_ms);
        }
        // Clocks that were set back must not make it learn for longer.
        self.learn_until_ms = self.learn_until_ms.min(server.now_ms.saturating_add(server.learn_ms));
    }

    fn take_limit(&mut self, request: &SyncRequest) {
        if request.limit_version > self.limit_version {
            self.limit_version = request.limit_version;
            self.limit = request.limit.min(NANO_USD_MAX);
        }
    }

    fn merge_row(&mut self, request: &SyncRequest, merged: Totals, now_ms: u64) {
        let row = self.rows.entry(request.row).or_default();
        row.totals = merged;
        // Half the window is exact enough, and leaves a report without news without a write.
        if now_ms.abs_diff(row.seen_ms) > ACTIVE_MS / 2 {
            row.seen_ms = now_ms;
        }
        let Some(close) = request.close else { return };
        match close {
            Close::Settled | Close::Reclaimed => row.totals.returned = merged.granted - merged.charged,
            Close::Forfeited => row.totals.charged = merged.granted - merged.returned,
        }
        row.closed_ms = Some(now_ms);
    }

    /// Closes a purse that was silent for long. One that lives on elsewhere hears of it with its next report.
    fn reclaim(&mut self, request: &SyncRequest, merged: Totals, server: Server<'_>) {
        let silent_ms = SILENT_MS.max(server.learn_ms.saturating_mul(4));
        let is_silent = |row: &Row| server.now_ms.abs_diff(row.seen_ms) >= silent_ms;
        if self.rows.get(&request.row).is_some_and(is_silent) {
            self.merge_row(request, merged, server.now_ms);
        }
    }

    /// What a closed purse turns out to have spent after all is debt, since its money went back.
    fn book_late(&mut self, request: &SyncRequest) {
        let Some(row) = self.rows.get_mut(&request.row).filter(|_| request.totals.are_sound()) else { return };
        let beyond = request.totals.charged.saturating_sub(row.totals.charged);
        row.totals.debt = row.totals.debt.max(add(request.totals.debt, beyond));
    }

    /// Raises the row's grant towards the target. What calls wait for comes first; beyond it, a purse gets all that is free
    /// only while it is alone, else a share that leaves something for the others.
    fn grant(&mut self, request: &SyncRequest, now_ms: u64) {
        let kept = self.starving_other(request.row, now_ms).map_or(0, |starving| starving.lacking);
        let free = self.free().saturating_sub(kept);
        let sharing = 1 + self.others(request.row, now_ms).count() as u64;
        let share = if sharing == 1 { free } else { free / (2 * sharing) };
        let elsewhere = self.elsewhere(request.row, now_ms);
        let learning = now_ms < self.learn_until_ms;
        let Some(row) = self.rows.get_mut(&request.row).filter(|row| row.closed_ms.is_none()) else { return };
        let granted = row.totals.granted;
        if !learning {
            let needed = request.need.min(NANO_USD_MAX).saturating_sub(granted);
            let wished = request.target.min(NANO_USD_MAX).saturating_sub(granted).max(needed);
            row.totals.granted += wished.min(needed.max(share)).min(free);
        }
        let lacking = request.need.min(NANO_USD_MAX).saturating_sub(row.totals.granted);
        self.note_starving(request.row, if elsewhere > 0 { lacking } else { 0 }, now_ms);
    }

    fn note_starving(&mut self, row: RowId, lacking: u64, now_ms: u64) {
        if self.starving_other(row, now_ms).is_some() {
            return;
        }
        let noted = self.starving.filter(|starving| starving.row == row && starving.lacking == lacking);
        let is_fresh = noted.is_some_and(|starving| starving.until_ms > now_ms + STARVING_MS / 2);
        if lacking == 0 {
            self.starving = None;
        } else if !is_fresh {
            self.starving = Some(Starving { row, lacking, until_ms: now_ms + STARVING_MS });
        }
    }

    /// The purse of another process for which money is kept.
    fn starving_other(&self, own: RowId, now_ms: u64) -> Option<Starving> {
        // The upper end is for clocks that were set back.
        let is_on = |until_ms: u64| now_ms < until_ms && until_ms <= now_ms + STARVING_MS;
        self.starving.filter(|starving| starving.row.incarnation != own.incarnation && is_on(starving.until_ms))
    }

    /// Folds rows that were closed long ago into two sums, so that restarts don't make an account grow.
    fn archive(&mut self, now_ms: u64) {
        let (mut charged, mut debt) = (self.archived_charged, self.archived_debt);
        self.rows.retain(|id, row| {
            let keep =
                id.is_credit() || row.closed_ms.is_none_or(|closed_ms| now_ms.saturating_sub(closed_ms) < ARCHIVE_MS);
            if !keep {
                charged = add(charged, row.totals.charged);
                debt = add(debt, row.totals.debt);
            }
            keep
        });
        (self.archived_charged, self.archived_debt) = (charged, debt);
    }

    fn reply_to(&self, row: RowId, now_ms: u64) -> Merged {
        let asked_back = self.starving_other(row, now_ms).is_some();
        let known = self.rows.get(&row).copied().unwrap_or_default();
        Merged {
            totals: known.totals,
            free: self.free(),
            elsewhere: self.elsewhere(row, now_ms),
            limit: self.limit,
            limit_version: self.limit_version,
            charged: self.charged(),
            debt: self.debt(),
            learning: now_ms < self.learn_until_ms,
            starving: asked_back || self.held().saturating_add(self.debt()) > self.spendable(),
            closed: known.closed_ms.is_some(),
            credited: self.credited(),
        }
    }

    /// What no purse holds and nobody spent.
    #[must_use]
    pub fn free(&self) -> u64 {
        self.spendable().saturating_sub(self.held()).saturating_sub(self.debt())
    }

    /// The limit, and what was given back.
    fn spendable(&self) -> u64 {
        add(self.limit, self.credited())
    }

    /// What operators gave back of what was spent.
    #[must_use]
    pub fn credited(&self) -> u64 {
        let notes = self.rows.iter().filter(|(id, _)| id.is_credit());
        notes.fold(0, |sum, (_, note)| add(sum, note.totals.returned))
    }

    /// What purses were granted and did not return: spent, or still held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.rows.values().fold(self.archived_charged, |sum, row| add(sum, row.totals.held()))
    }

    /// Spent, without debt.
    #[must_use]
    pub fn charged(&self) -> u64 {
        self.rows.values().fold(self.archived_charged, |sum, row| add(sum, row.totals.charged))
    }

    /// Spent beyond purses.
    #[must_use]
    pub fn debt(&self) -> u64 {
        self.rows.values().fold(self.archived_debt, |sum, row| add(sum, row.totals.debt))
    }

    /// Open rows of other processes that were heard of lately.
    fn others(&self, own: RowId, now_ms: u64) -> impl Iterator<Item = &Row> {
        self.rows
            .iter()
            .filter(move |(id, row)| {
                let active = now_ms.abs_diff(row.seen_ms) < ACTIVE_MS;
                id.incarnation != own.incarnation && row.closed_ms.is_none() && active
            })
            .map(|(_, row)| row)
    }

    /// What could still come back from others.
    fn elsewhere(&self, own: RowId, now_ms: u64) -> u64 {
        self.others(own, now_ms).fold(0, |sum, row| add(sum, row.totals.unspent()))
    }
}

/// Sums stay within what one amount may be, so that every authority counts alike: one of them counts in doubles. A limit is
/// never higher, so nothing is granted that would not be otherwise.
fn add(a: u64, b: u64) -> u64 {
    a.saturating_add(b).min(NANO_USD_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: Server<'static> = Server { now_ms: 1_000_000, run: "a", learn_ms: 3_000, wiped: false };

    fn row(incarnation: u64) -> RowId {
        RowId { incarnation, purse: 0 }
    }

    fn wish(incarnation: u64, totals: Totals, need: u64, target: u64) -> SyncRequest {
        let (row, limit) = (row(incarnation), 1000);
        SyncRequest { row, totals, need, target, limit, limit_version: 1, create: true, close: None }
    }

    fn granted(granted: u64) -> Totals {
        Totals { granted, ..Totals::default() }
    }

    #[track_caller]
    fn merged(reply: SyncReply) -> Merged {
        match reply {
            SyncReply::Merged(merged) => merged,
            other => panic!("expected a merge, got {other:?}"),
        }
    }

    #[test]
    fn a_missing_account_is_never_started_full() {
        let mut state = None;
        let request = SyncRequest { create: false, ..wish(1, Totals::default(), 1, 1) };
        assert_eq!(sync(&mut state, &request, SERVER), SyncReply::NoAccount);
        assert_eq!(state, None);
    }

    #[test]
    fn an_account_restored_by_a_holder_listens_before_it_grants() {
        let mut state = None;
        let request = wish(1, Totals { charged: 5, ..granted(10) }, 20, 20);
        let reply = merged(sync(&mut state, &request, SERVER));
        assert!(reply.learning);
        assert_eq!(reply.totals.granted, 10);
        let later = Server { now_ms: SERVER.now_ms + SERVER.learn_ms, ..SERVER };
        assert_eq!(merged(sync(&mut state, &request, later)).totals.granted, 20);
    }

    #[test]
    fn an_account_that_is_new_to_a_wiped_server_listens_before_it_grants() {
        let mut state = None;
        let wiped = Server { wiped: true, ..SERVER };
        assert_eq!(merged(sync(&mut state, &wish(1, Totals::default(), 10, 10), wiped)).totals.granted, 0);
        merged(sync(&mut state, &wish(2, Totals { charged: 900, ..granted(995) }, 0, 0), wiped));
        let later = Server { now_ms: SERVER.now_ms + SERVER.learn_ms, ..SERVER };
        assert_eq!(merged(sync(&mut state, &wish(1, Totals::default(), 10, 10), later)).totals.granted, 5);
    }

    #[test]
    fn a_replaced_server_listens_before_it_grants() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 10, 10), SERVER);
        let replaced = Server { run: "b", ..SERVER };
        let reply = merged(sync(&mut state, &wish(1, granted(10), 20, 20), replaced));
        assert!(reply.learning);
        assert_eq!(reply.totals.granted, 10);
    }

    #[test]
    fn a_report_that_cannot_be_true_changes_nothing() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 10, 10), SERVER);
        let before = state.clone();
        let lie = wish(1, Totals { charged: 11, ..granted(10) }, 20, 20);
        assert_eq!(sync(&mut state, &lie, SERVER), SyncReply::BadReport);
        let huge = wish(1, granted(NANO_USD_MAX + 1), 20, 20);
        assert_eq!(sync(&mut state, &huge, SERVER), SyncReply::BadReport);
        assert_eq!(state, before);
    }

    #[test]
    fn a_purse_alone_may_take_all_and_one_of_several_only_its_share() {
        let mut state = None;
        assert_eq!(merged(sync(&mut state, &wish(1, Totals::default(), 0, 600), SERVER)).totals.granted, 600);
        let reply = merged(sync(&mut state, &wish(2, Totals::default(), 50, 400), SERVER));
        assert_eq!(reply.totals.granted, 100, "a quarter of 400 free");
        let reply = merged(sync(&mut state, &wish(2, granted(100), 400, 400), SERVER));
        assert_eq!(reply.totals.granted, 400, "calls that wait come first");
    }

    #[test]
    fn a_lower_limit_stops_grants_and_asks_for_idle_money() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 600, 600), SERVER);
        let lowered = SyncRequest { limit: 500, limit_version: 2, ..wish(1, granted(600), 700, 700) };
        let reply = merged(sync(&mut state, &lowered, SERVER));
        assert_eq!((reply.totals.granted, reply.limit, reply.free, reply.starving), (600, 500, 0, true));
        let stale = merged(sync(&mut state, &wish(1, granted(600), 700, 700), SERVER));
        assert_eq!(stale.limit, 500, "an older version does not come back");
    }

    #[test]
    fn a_short_purse_makes_others_hand_back() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 0, 1000), SERVER);
        let reply = merged(sync(&mut state, &wish(2, Totals::default(), 10, 10), SERVER));
        assert_eq!((reply.totals.granted, reply.free, reply.elsewhere), (0, 0, 1000));
        assert!(merged(sync(&mut state, &wish(1, granted(1000), 0, 0), SERVER)).starving);
        let back = wish(1, Totals { returned: 1000, ..granted(1000) }, 0, 0);
        sync(&mut state, &back, SERVER);
        assert_eq!(merged(sync(&mut state, &wish(2, Totals::default(), 10, 10), SERVER)).totals.granted, 10);
        assert!(!merged(sync(&mut state, &back, SERVER)).starving);
    }

    #[test]
    fn of_two_that_hold_half_of_what_they_need_one_gets_it() {
        let mut state = None;
        for incarnation in [1, 2] {
            sync(&mut state, &wish(incarnation, Totals::default(), 500, 500), SERVER);
        }
        merged(sync(&mut state, &wish(1, granted(500), 1000, 1000), SERVER));
        let second = merged(sync(&mut state, &wish(2, granted(500), 1000, 1000), SERVER));
        assert!(second.starving, "the first was first");
        let back = wish(2, Totals { returned: 500, ..granted(500) }, 1500, 1500);
        assert_eq!(merged(sync(&mut state, &back, SERVER)).totals.granted, 500, "what came back is kept for the first");
        assert_eq!(merged(sync(&mut state, &wish(1, granted(500), 1000, 1000), SERVER)).totals.granted, 1000);
    }

    #[test]
    fn a_silent_purse_counts_as_spent_for_ever() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 1000, 1000), SERVER);
        let next_year = Server { now_ms: SERVER.now_ms + 31_536_000_000, ..SERVER };
        let reply = merged(sync(&mut state, &wish(2, Totals::default(), 10, 10), next_year));
        assert_eq!((reply.totals.granted, reply.free, reply.elsewhere), (0, 0, 0));
    }

    #[test]
    fn closing_returns_the_rest_or_counts_all_as_spent() {
        for (close, charged, free) in [(Close::Settled, 40, 960), (Close::Forfeited, 100, 900)] {
            let mut state = None;
            sync(&mut state, &wish(1, Totals::default(), 100, 100), SERVER);
            let report = wish(1, Totals { charged: 40, ..granted(40) }, 0, 0);
            let last = SyncRequest { close: Some(close), ..report };
            for attempt in 0..2 {
                let reply = merged(sync(&mut state, &last, SERVER));
                assert_eq!((reply.charged, reply.free), (charged, free), "{close:?}, attempt {attempt}");
            }
            let late = wish(1, granted(100), 500, 500);
            assert_eq!(merged(sync(&mut state, &late, SERVER)).free, free, "a closed row is granted nothing");
        }
    }

    fn reclaim(incarnation: u64, charged: u64) -> SyncRequest {
        let totals = Totals { charged, ..Totals::default() };
        SyncRequest { close: Some(Close::Reclaimed), create: false, ..wish(incarnation, totals, 0, 0) }
    }

    fn later(ms: u64) -> Server<'static> {
        Server { now_ms: SERVER.now_ms + ms, ..SERVER }
    }

    #[test]
    fn only_a_silent_purse_can_be_reclaimed() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 1000, 1000), SERVER);
        sync(&mut state, &wish(1, Totals { charged: 300, ..granted(1000) }, 0, 0), SERVER);
        for elapsed_ms in [0, 10_000, SILENT_MS - 1] {
            let reply = merged(sync(&mut state, &reclaim(1, 0), later(elapsed_ms)));
            assert_eq!((reply.closed, reply.free), (false, 0), "{elapsed_ms} ms");
        }
        assert!(!merged(sync(&mut state, &reclaim(9, 0), later(SILENT_MS))).closed, "nobody knows it");
        assert_eq!(
            sync(&mut state, &reclaim(1, 1001), later(SILENT_MS)),
            SyncReply::BadReport,
            "it never held as much"
        );
        for attempt in 0..2 {
            let reply = merged(sync(&mut state, &reclaim(1, 400), later(SILENT_MS)));
            assert_eq!((reply.closed, reply.charged, reply.free), (true, 400, 600), "attempt {attempt}");
        }
    }

    #[test]
    fn a_purse_that_lives_after_all_is_closed_and_what_it_spends_is_debt() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 1000, 1000), SERVER);
        assert!(merged(sync(&mut state, &reclaim(1, 0), later(SILENT_MS))).closed);
        let other = merged(sync(&mut state, &wish(2, Totals::default(), 1000, 1000), later(SILENT_MS)));
        assert_eq!(other.totals.granted, 1000);
        for (charged, debt, expected) in [(250, 0, 250), (100, 0, 250), (250, 7, 257), (600, 7, 607)] {
            let report = wish(1, Totals { charged, debt, ..granted(1000) }, 2000, 2000);
            let reply = merged(sync(&mut state, &report, later(SILENT_MS)));
            assert_eq!((reply.closed, reply.totals.granted, reply.free), (true, 1000, 0));
            assert_eq!(reply.debt, expected, "after a report of {charged} and {debt}");
        }
        let unsound = wish(1, Totals { charged: 2000, ..granted(1000) }, 0, 0);
        assert_eq!(merged(sync(&mut state, &unsound, later(SILENT_MS))).debt, 607);
    }

    #[test]
    fn a_credit_note_gives_back_what_was_spent_once_and_never_more() {
        let note = |id: u64, amount: u64| {
            let totals = Totals { granted: amount, returned: amount, ..Totals::default() };
            SyncRequest { row: RowId::credit(id), create: false, ..wish(0, totals, 0, 0) }
        };
        let mut state = None;
        assert_eq!(sync(&mut state, &note(7, 1), SERVER), SyncReply::NoAccount);
        sync(&mut state, &wish(1, Totals::default(), 1000, 1000), SERVER);
        sync(&mut state, &wish(1, Totals { charged: 900, debt: 50, ..granted(1000) }, 0, 0), SERVER);
        assert_eq!(sync(&mut state, &note(7, 951), SERVER), SyncReply::BadReport, "more than was spent");
        for amount in [200, 200, 300] {
            let reply = merged(sync(&mut state, &note(7, amount), SERVER));
            assert_eq!((reply.credited, reply.free, reply.charged), (200, 150, 900), "{amount} under the same name");
        }
        assert_eq!(sync(&mut state, &note(8, 751), SERVER), SyncReply::BadReport, "more than was spent in all");
        let next = merged(sync(&mut state, &wish(2, Totals::default(), 500, 500), later(2 * ARCHIVE_MS)));
        assert_eq!((next.totals.granted, next.credited), (150, 200), "it stays when closed rows become sums");
    }

    #[test]
    fn rows_closed_long_ago_become_two_sums() {
        let mut state = None;
        sync(&mut state, &wish(1, Totals::default(), 100, 100), SERVER);
        let last = wish(1, Totals { charged: 40, debt: 7, ..granted(100) }, 0, 0);
        sync(&mut state, &SyncRequest { close: Some(Close::Settled), ..last }, SERVER);
        let later = Server { now_ms: SERVER.now_ms + ARCHIVE_MS, ..SERVER };
        let reply = merged(sync(&mut state, &wish(2, Totals::default(), 0, 0), later));
        assert_eq!((reply.charged, reply.debt, reply.free), (40, 7, 953));
        assert_eq!(state.unwrap().rows.len(), 1);
    }

    #[test]
    fn debt_lowers_what_is_left_to_grant() {
        let mut state = None;
        let reply = merged(sync(&mut state, &wish(1, Totals { debt: 300, ..Totals::default() }, 0, 0), SERVER));
        assert_eq!((reply.free, reply.debt), (700, 300));
    }
}
