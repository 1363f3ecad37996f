//! What may be done to a book, and what comes of it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Book, Declared, Deployment, Event, Files, Kind, NotedTrial, Registered, Rollout, RolloutState, Scheduled, Seal,
    Shelf, Stages, TRAIL_MAX, TrialDeed, What, changed_partials, compare_versions, content_sha256,
    experiments::{self, Bench},
    partials, short,
};

/// Versions of one model or prompt.
const VERSIONS_MAX: usize = 500;

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Something with one model or prompt.
    To {
        /// Which kind.
        kind: Kind,
        /// Its name.
        name: String,
        /// What.
        deed: Deed,
    },
    /// Versions of files served for the first time.
    Seal {
        /// Which.
        versions: Vec<SealedVersion>,
        /// Whether a changed version gets a new seal rather than a refusal.
        reseal: bool,
    },
    /// Something with one experiment.
    Trial {
        /// Its name.
        name: String,
        /// What.
        deed: TrialDeed,
    },
    /// Experiments of files run with other weights than were written down.
    Note {
        /// Which.
        experiments: Vec<NotedTrial>,
    },
}

/// What can be done with one model or prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Deed {
    /// Registers a version. The same one again changes nothing.
    AddVersion(NewVersion),
    /// Makes a version live at once. Ends a roll-out, calls off a planned deployment.
    Deploy {
        /// The version.
        version: String,
        /// Why.
        reason: String,
    },
    /// Goes back to the version that was live before. Again, it goes one further back, not to and fro: what was rolled back is
    /// deployed anew to have it again. During a roll-out, that is the whole step: everybody is back at the version before it.
    Rollback {
        /// Why.
        reason: String,
    },
    /// Plans a deployment, in the place of an earlier plan.
    Schedule {
        /// The version.
        version: String,
        /// When it is due.
        at: Timestamp,
        /// Why.
        reason: String,
    },
    /// Calls a planned deployment off.
    CancelSchedule,
    /// Does what was planned, if it is due and still is this version.
    RunSchedule {
        /// The version that was seen to be due.
        version: String,
    },
    /// Begins to lead users over, stage by stage.
    StartRollout {
        /// The version.
        version: String,
        /// Its stages.
        stages: Stages,
        /// What must hold, for whoever judges it.
        guardrails: Value,
        /// Why.
        reason: String,
    },
    /// Goes on to the next stage, or to the end, if it still is at `stage`.
    AdvanceRollout {
        /// The stage that was seen, from 0.
        stage: usize,
    },
    /// Leads everybody back.
    AbortRollout {
        /// Why.
        reason: String,
    },
}

/// A version to be registered.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewVersion {
    /// Its name; without one, the next `vN`.
    pub version: Option<String>,
    /// What a file would say of it.
    pub content: Value,
    /// For people.
    pub description: String,
    /// For people and searches.
    pub tags: BTreeMap<String, String>,
    /// The version that it was made from.
    pub parent: Option<String>,
}

/// A version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedVersion {
    /// Of what.
    pub kind: Kind,
    /// Of which.
    pub name: String,
    /// The version.
    pub version: String,
    /// [`content_sha256`] of it.
    pub sha256: String,
    /// [`partials`](super::partials) of it.
    pub partials: BTreeMap<String, String>,
}

/// What came of a command.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The book from now on.
    pub book: Book,
    /// Whether it is another one than before.
    pub changed: bool,
    /// The version or variant that the command was about, where it was one.
    pub version: Option<String>,
}

/// Why a command is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// As things stand, it cannot be done.
    #[error("{0}")]
    Conflict(String),
    /// It makes no sense.
    #[error("{0}")]
    Wrong(String),
}

impl Book {
    /// The book after `command`, which `who` gives at `now`, at a gateway whose files say `files`.
    ///
    /// # Errors
    /// Why it is not done, with the mend.
    pub fn apply(&self, command: &Command, files: &Files, now: Timestamp, who: &str) -> Result<Applied, Refusal> {
        let mut book = self.clone();
        let version = match command {
            Command::To { kind, name, deed } => {
                let declared = files.get(*kind, name);
                let known = self.shelf(*kind, name).is_some() || declared.is_some();
                if !known && !matches!(deed, Deed::AddVersion(_)) {
                    return Err(Refusal::NotFound(format!("no {} is named `{name}`", kind.noun())));
                }
                let shelf = book.shelf_mut(*kind, name);
                Desk { kind: *kind, name, declared, shelf, now, who }.apply(deed)?
            }
            Command::Seal { versions, reseal } => {
                versions.iter().try_for_each(|version| seal(&mut book, version, *reseal, now, who))?;
                None
            }
            Command::Trial { name, deed } => Bench { book: &mut book, files, name, now, who }.apply(deed)?,
            Command::Note { experiments } => {
                experiments::note(&mut book, experiments, now);
                None
            }
        };
        Ok(Applied { changed: book != *self, book, version })
    }
}

fn seal(book: &mut Book, sealed: &SealedVersion, reseal: bool, now: Timestamp, who: &str) -> Result<(), Refusal> {
    let SealedVersion { kind, name, version, sha256, partials } = sealed;
    let shelf = book.shelf_mut(*kind, name);
    match shelf.seals.get(version) {
        Some(seal) if seal.sha256 == *sha256 => return Ok(()),
        Some(seal) if !reseal => return Err(changed(*kind, name, version, seal, partials)),
        Some(_) => {
            let what = What::Resealed;
            let reason = format!("{} from now on", short(sha256));
            let (by, version) = (who.to_owned(), version.clone());
            shelf.note(Event { at: now, by, what, version, from: None, weight: None, reason, key: None });
        }
        None => {}
    }
    shelf.seals.insert(version.clone(), Seal { sha256: sha256.clone(), at: now, partials: partials.clone() });
    Ok(())
}

/// What is said of a version whose content is another one than `known`, and includes `now`.
fn changed(kind: Kind, name: &str, version: &str, known: &Seal, now: &BTreeMap<String, String>) -> Refusal {
    Refusal::Conflict(format!(
        "{}{version} of the {} `{name}` was registered as {} on {}; a version never changes: give what you changed a new name",
        changed_partials(&known.partials, now),
        kind.noun(),
        short(&known.sha256),
        known.at.strftime("%Y-%m-%d")
    ))
}

/// One shelf, with all that a deed needs to know.
pub(super) struct Desk<'a> {
    pub(super) kind: Kind,
    pub(super) name: &'a str,
    pub(super) declared: Option<&'a Declared>,
    pub(super) shelf: &'a mut Shelf,
    pub(super) now: Timestamp,
    pub(super) who: &'a str,
}

impl Desk<'_> {
    /// The version that it was about.
    pub(super) fn apply(&mut self, deed: &Deed) -> Result<Option<String>, Refusal> {
        match deed {
            Deed::AddVersion(new) => self.add(new),
            Deed::Deploy { version, reason } => self.deploy(version, reason, What::Deployed),
            Deed::Rollback { reason } => self.roll_back(reason),
            Deed::Schedule { version, at, reason } => self.schedule(version, *at, reason),
            Deed::CancelSchedule => self.cancel_schedule(),
            Deed::RunSchedule { version } => self.run_schedule(version),
            Deed::StartRollout { version, stages, guardrails, reason } => {
                self.start_rollout(version, stages.clone(), guardrails, reason)
            }
            Deed::AdvanceRollout { stage } => self.advance_rollout(*stage),
            Deed::AbortRollout { reason } => self.abort_rollout(reason),
        }
    }

    fn add(&mut self, new: &NewVersion) -> Result<Option<String>, Refusal> {
        if !new.content.is_object() {
            return Err(Refusal::Wrong("a version's content is a map, as in the configuration".to_owned()));
        }
        let sha256 = content_sha256(&new.content);
        let version = new.version.clone().unwrap_or_else(|| self.next_name());
        if let Some(known) = self.known_as(&version) {
            return match known.sha256 == sha256 {
                true => Ok(Some(version)),
                false => Err(changed(self.kind, self.name, &version, &known, &partials(&new.content))),
            };
        }
        if let Some(parent) = &new.parent {
            self.must_exist(parent)?;
        }
        if self.shelf.versions.len() >= VERSIONS_MAX {
            return Err(Refusal::Conflict(format!("a {} has at most {VERSIONS_MAX} versions", self.kind.noun())));
        }
        let registered = Registered {
            content: new.content.clone(),
            sha256,
            description: new.description.clone(),
            tags: new.tags.clone(),
            parent: new.parent.clone(),
            created_at: self.now,
            by: self.who.to_owned(),
        };
        self.shelf.versions.insert(version.clone(), registered);
        self.note(What::Registered, &version, None, &new.description);
        Ok(Some(version))
    }

    /// One more than the largest `vN` of file and registry.
    fn next_name(&self) -> String {
        let number = |name: &String| name.strip_prefix('v').and_then(|digits| digits.parse::<u64>().ok());
        let largest = self.names().filter_map(number).max().unwrap_or(0);
        format!("v{}", largest.saturating_add(1))
    }

    /// `wanted`, or the first of `wanted-2`, `wanted-3`, … that no other content has.
    pub(super) fn free_name(&self, wanted: &str, sha256: &str) -> String {
        let numbered = (2..).map(|n: u32| format!("{wanted}-{n}"));
        let is_free = |name: &String| self.known_as(name).is_none_or(|known| known.sha256 == sha256);
        std::iter::once(wanted.to_owned()).chain(numbered).find(is_free).expect("a version has finitely many names")
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        let declared = self.declared.into_iter().flat_map(|declared| declared.versions.keys());
        self.shelf.versions.keys().chain(self.shelf.seals.keys()).chain(declared)
    }

    /// The hash under which a version is known, and since when.
    fn known_as(&self, version: &str) -> Option<Seal> {
        let seal = |sha256: &String, at, content| Seal { sha256: sha256.clone(), at, partials: partials(content) };
        let registered = self.shelf.versions.get(version);
        let registered = registered.map(|known| seal(&known.sha256, known.created_at, &known.content));
        let declared = || {
            let declared = self.declared?;
            let content = declared.contents.get(version).unwrap_or(&Value::Null);
            Some(seal(declared.versions.get(version)?, self.now, content))
        };
        registered.or_else(|| self.shelf.seals.get(version).cloned()).or_else(declared)
    }

    /// A version that can serve here: registered, or in the file.
    fn must_exist(&self, version: &str) -> Result<(), Refusal> {
        let in_file = self.declared.is_some_and(|declared| declared.versions.contains_key(version));
        if in_file || self.shelf.versions.contains_key(version) {
            return Ok(());
        }
        let declared = self.declared.into_iter().flat_map(|declared| declared.versions.keys());
        let mut known: Vec<&str> = self.shelf.versions.keys().chain(declared).map(String::as_str).collect();
        known.sort_by(|a, b| compare_versions(a, b));
        known.dedup();
        let (kind, name, known) = (self.kind.noun(), self.name, known.join(", "));
        Err(Refusal::NotFound(format!("the {kind} `{name}` has no version `{version}`; it has {known}")))
    }

    fn must_not_be_pinned(&self) -> Result<(), Refusal> {
        let Some(declared) = self.declared.filter(|declared| declared.pin) else { return Ok(()) };
        let (section, name) = (self.kind.section(), self.name);
        let live = declared.live.as_deref().unwrap_or("its version");
        Err(Refusal::Conflict(format!(
            "the file pins {live} (`{section}.{name}.pin: true`); change `live` there, or take `pin` out"
        )))
    }

    fn file_says(&self) -> Option<String> {
        self.declared.and_then(|declared| declared.live.clone())
    }

    /// Writes down what the file decided since the last deployment, so that what follows builds on what is true.
    fn catch_up(&mut self) {
        let file_says = self.file_says();
        let Some(live) = self.shelf.live.clone() else { return };
        if !super::file_decided_later(&live, file_says.as_deref()) {
            return;
        }
        let Some(version) = file_says.clone() else { return };
        self.end_rollout("the file names another version");
        self.keep_in_trail(live.clone());
        self.note(What::FileDecided, &version, Some(&live.version), "the file was changed after the last deployment");
        let (by, reason) = ("file".to_owned(), String::new());
        self.shelf.live = Some(Deployment { version, at: self.now, by, reason, file_said: file_says });
    }

    fn current(&self) -> Option<String> {
        self.shelf.effective(self.declared).map(|effective| effective.version.to_owned())
    }

    fn deploy(&mut self, version: &str, reason: &str, what: What) -> Result<Option<String>, Refusal> {
        self.must_not_be_pinned()?;
        self.must_exist(version)?;
        self.catch_up();
        let before = self.current();
        if before.as_deref() == Some(version) && self.shelf.live.is_some() && self.running().is_none() {
            return Ok(Some(version.to_owned()));
        }
        self.end_rollout("another version was deployed");
        self.shelf.scheduled = None;
        if before.as_deref() != Some(version) {
            self.remember_what_is_live();
        }
        self.note(what, version, before.as_deref().filter(|before| *before != version), reason);
        self.set_live(version, reason);
        Ok(Some(version.to_owned()))
    }

    /// Puts what is live into the trail, the file's choice among it.
    fn remember_what_is_live(&mut self) {
        let of_file = self.file_says().map(|version| Deployment {
            version,
            at: self.now,
            by: "file".to_owned(),
            reason: String::new(),
            file_said: self.file_says(),
        });
        if let Some(live) = self.shelf.live.clone().or(of_file) {
            self.keep_in_trail(live);
        }
    }

    fn keep_in_trail(&mut self, live: Deployment) {
        self.shelf.trail.push(live);
        let surplus = self.shelf.trail.len().saturating_sub(TRAIL_MAX);
        self.shelf.trail.drain(..surplus);
    }

    fn set_live(&mut self, version: &str, reason: &str) {
        let (version, by, reason) = (version.to_owned(), self.who.to_owned(), reason.to_owned());
        self.shelf.live = Some(Deployment { version, at: self.now, by, reason, file_said: self.file_says() });
    }

    fn roll_back(&mut self, reason: &str) -> Result<Option<String>, Refusal> {
        self.must_not_be_pinned()?;
        if self.running().is_some() {
            return self.abort_rollout(reason);
        }
        self.catch_up();
        let now = self.current();
        // A version that is gone from the file cannot serve again.
        let before = loop {
            let Some(before) = self.shelf.trail.pop() else {
                let (kind, name) = (self.kind.noun(), self.name);
                return Err(Refusal::Conflict(format!("nothing was live before in the {kind} `{name}`")));
            };
            if self.must_exist(&before.version).is_ok() && now.as_deref() != Some(&before.version) {
                break before;
            }
        };
        self.shelf.scheduled = None;
        self.note(What::RolledBack, &before.version, now.as_deref(), reason);
        self.set_live(&before.version, reason);
        Ok(Some(before.version))
    }

    fn schedule(&mut self, version: &str, at: Timestamp, reason: &str) -> Result<Option<String>, Refusal> {
        self.must_not_be_pinned()?;
        self.must_exist(version)?;
        if at <= self.now {
            return Err(Refusal::Wrong(format!("{at} is over; name a time to come, or none to deploy at once")));
        }
        let (by, reason) = (self.who.to_owned(), reason.to_owned());
        self.note(What::Scheduled, version, None, &format!("due at {at}"));
        self.shelf.scheduled = Some(Scheduled { version: version.to_owned(), at, by, reason });
        Ok(Some(version.to_owned()))
    }

    fn cancel_schedule(&mut self) -> Result<Option<String>, Refusal> {
        let Some(scheduled) = self.shelf.scheduled.take() else {
            return Err(Refusal::Conflict("no deployment is planned".to_owned()));
        };
        self.note(What::ScheduleCancelled, &scheduled.version, None, "");
        Ok(Some(scheduled.version))
    }

    fn run_schedule(&mut self, version: &str) -> Result<Option<String>, Refusal> {
        let is_due = |scheduled: &&Scheduled| scheduled.version == version && scheduled.at <= self.now;
        let Some(scheduled) = self.shelf.scheduled.clone().filter(|scheduled| is_due(&scheduled)) else {
            return Ok(None);
        };
        let who = self.who;
        let by = format!("{} (planned)", scheduled.by);
        let mut desk = Desk { who: &by, shelf: &mut *self.shelf, ..*self };
        let outcome = desk.deploy(version, &scheduled.reason, What::Deployed);
        self.shelf.scheduled = None;
        if let Err(refusal) = outcome {
            // What became impossible in the meantime is called off, and says why.
            self.who = who;
            self.note(What::ScheduleCancelled, version, None, &refusal.to_string());
            return Ok(None);
        }
        outcome
    }

    fn running(&self) -> Option<&Rollout> {
        self.shelf.running(self.declared)
    }

    fn start_rollout(
        &mut self,
        version: &str,
        stages: Stages,
        guardrails: &Value,
        reason: &str,
    ) -> Result<Option<String>, Refusal> {
        self.must_not_be_pinned()?;
        self.must_exist(version)?;
        self.catch_up();
        if let Some(rollout) = self.running() {
            let to = &rollout.to;
            return Err(Refusal::Conflict(format!("the roll-out of {to} is on its way; abort it first")));
        }
        let from = self.current().filter(|from| from != version).ok_or_else(|| {
            Refusal::Conflict(format!("{version} is live, or nothing is that a roll-out could lead away from"))
        })?;
        if self.shelf.live.is_none() {
            let (by, reason) = ("file".to_owned(), String::new());
            let file_said = self.file_says();
            self.shelf.live = Some(Deployment { version: from.clone(), at: self.now, by, reason, file_said });
        }
        self.shelf.scheduled = None;
        self.shelf.rollout = Some(Rollout {
            from,
            to: version.to_owned(),
            stages: stages.into_inner(),
            stage: 0,
            stage_since: self.now,
            guardrails: guardrails.clone(),
            by: self.who.to_owned(),
            reason: reason.to_owned(),
            state: RolloutState::Running,
        });
        self.note_rollout(What::RolloutStarted, reason);
        self.finish_at_the_end();
        Ok(Some(version.to_owned()))
    }

    fn advance_rollout(&mut self, stage: usize) -> Result<Option<String>, Refusal> {
        let Some(rollout) = self.running() else { return Err(no_rollout()) };
        let (to, last) = (rollout.to.clone(), rollout.stages.len().saturating_sub(1));
        // Somebody else was faster.
        if rollout.stage != stage {
            return Ok(None);
        }
        if stage >= last {
            self.finish_rollout();
            return Ok(Some(to));
        }
        if let Some(rollout) = &mut self.shelf.rollout {
            rollout.stage += 1;
            rollout.stage_since = self.now;
        }
        self.note_rollout(What::RolloutAdvanced, "");
        self.finish_at_the_end();
        Ok(Some(to))
    }

    /// A last stage without a time is over at once.
    fn finish_at_the_end(&mut self) {
        let at_the_end = self.shelf.rollout.as_ref().is_some_and(|rollout| {
            let last = rollout.stage + 1 == rollout.stages.len();
            last && rollout.stages.get(rollout.stage).is_some_and(|stage| stage.for_s.is_none())
        });
        if at_the_end {
            self.finish_rollout();
        }
    }

    fn finish_rollout(&mut self) {
        let Some(rollout) = &mut self.shelf.rollout else { return };
        rollout.state = RolloutState::Finished;
        let (from, to, by, reason) =
            (rollout.from.clone(), rollout.to.clone(), rollout.by.clone(), rollout.reason.clone());
        self.remember_what_is_live();
        self.note(What::RolloutFinished, &to, Some(&from), "");
        let file_said = self.file_says();
        self.shelf.live = Some(Deployment { version: to, at: self.now, by, reason, file_said });
    }

    fn abort_rollout(&mut self, reason: &str) -> Result<Option<String>, Refusal> {
        let Some(rollout) = self.running() else { return Err(no_rollout()) };
        let from = rollout.from.clone();
        self.end_rollout(reason);
        Ok(Some(from))
    }

    fn end_rollout(&mut self, reason: &str) {
        let Some(rollout) = &mut self.shelf.rollout else { return };
        if rollout.state != RolloutState::Running {
            return;
        }
        rollout.state = RolloutState::Aborted;
        self.note_rollout(What::RolloutAborted, reason);
    }

    fn note_rollout(&mut self, what: What, reason: &str) {
        let Some(rollout) = self.shelf.rollout.clone() else { return };
        let weight = (what != What::RolloutAborted).then(|| rollout.weight());
        let (at, by, from) = (self.now, self.who.to_owned(), Some(rollout.from));
        self.shelf.note(Event {
            at,
            by,
            what,
            version: rollout.to,
            from,
            weight,
            reason: reason.to_owned(),
            key: None,
        });
    }

    fn note(&mut self, what: What, version: &str, from: Option<&str>, reason: &str) {
        let (at, by, reason) = (self.now, self.who.to_owned(), reason.to_owned());
        let (version, from) = (version.to_owned(), from.map(str::to_owned));
        self.shelf.note(Event { at, by, what, version, from, weight: None, reason, key: None });
    }
}

fn no_rollout() -> Refusal {
    Refusal::Conflict("no roll-out is on its way".to_owned())
}
