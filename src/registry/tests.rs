use proptest::prelude::*;
use serde_json::json;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_000_000 + second).expect("a time")
}

/// The file has v1, which is live.
fn files() -> Files {
    let sha256 = content_sha256(&json!({ "system": "one" }));
    let declared = Declared {
        live: Some("v1".to_owned()),
        versions: BTreeMap::from([("v1".to_owned(), sha256)]),
        ..Declared::default()
    };
    Files { prompts: BTreeMap::from([("p".to_owned(), declared)]), ..Files::default() }
}

fn to(deed: Deed) -> Command {
    Command::To { kind: Kind::Prompts, name: "p".to_owned(), deed }
}

fn add(version: Option<&str>, system: &str) -> Command {
    let version = version.map(str::to_owned);
    to(Deed::AddVersion(NewVersion { version, content: json!({ "system": system }), ..NewVersion::default() }))
}

fn deploy(version: &str) -> Command {
    to(Deed::Deploy { version: version.to_owned(), reason: "why".to_owned() })
}

fn rollback() -> Command {
    to(Deed::Rollback { reason: String::new() })
}

fn rollout(version: &str, stages: &str) -> Command {
    let stages = stages.parse().expect("stages");
    let (version, reason) = (version.to_owned(), String::new());
    to(Deed::StartRollout { version, stages, guardrails: Value::Null, reason })
}

/// A book, driven by hand.
struct Desk {
    book: Book,
    files: Files,
    clock: i64,
}

impl Desk {
    fn new() -> Desk {
        let mut desk = Desk { book: Book::default(), files: files(), clock: 0 };
        for (version, system) in [("v2", "two"), ("v3", "three"), ("v4", "four")] {
            desk.does(&add(Some(version), system));
        }
        desk
    }

    fn tries(&mut self, command: &Command) -> Result<Applied, Refusal> {
        self.clock += 1;
        let applied = self.book.apply(command, &self.files, at(self.clock), "ann")?;
        self.book = applied.book.clone();
        Ok(applied)
    }

    fn does(&mut self, command: &Command) -> Option<String> {
        self.tries(command).expect("done").version
    }

    fn refused(&mut self, command: &Command) -> String {
        self.tries(command).expect_err("refused").to_string()
    }

    fn shelf(&self) -> &Shelf {
        self.book.shelf(Kind::Prompts, "p").expect("a shelf")
    }

    fn live(&self) -> &str {
        self.shelf().effective(self.files.get(Kind::Prompts, "p")).expect("something is live").version
    }

    fn weight(&self) -> Option<f64> {
        self.shelf().running(self.files.get(Kind::Prompts, "p")).map(Rollout::weight)
    }

    fn edits_file(&mut self, live: &str) {
        let declared = self.files.prompts.get_mut("p").expect("declared");
        declared.live = Some(live.to_owned());
        declared.versions.insert(live.to_owned(), "f".repeat(64));
    }
}

#[test]
fn rollbacks_go_further_back_and_never_to_and_fro() {
    let mut desk = Desk::new();
    for version in ["v2", "v3", "v4"] {
        desk.does(&deploy(version));
    }
    let lives: Vec<Option<String>> = (0..3).map(|_| desk.does(&rollback())).collect();
    assert_eq!(lives, [Some("v3".to_owned()), Some("v2".to_owned()), Some("v1".to_owned())]);
    assert_eq!(desk.refused(&rollback()), "nothing was live before in the prompt `p`");
    desk.does(&deploy("v4"));
    assert_eq!(desk.does(&rollback()).as_deref(), Some("v1"));
}

#[test]
fn a_version_never_changes_and_the_same_one_again_is_nothing_new() {
    let mut desk = Desk::new();
    assert!(!desk.tries(&add(Some("v2"), "two")).expect("the same").changed);
    let refusal = desk.refused(&add(Some("v2"), "two!"));
    assert!(refusal.contains("v2 of the prompt `p` was registered as sha256:"), "{refusal}");
    assert!(refusal.ends_with("a version never changes: give what you changed a new name"), "{refusal}");
    assert!(desk.refused(&add(Some("v1"), "not one")).contains("never changes"), "the file's version too");
    assert_eq!(desk.does(&add(None, "next")).as_deref(), Some("v5"));
}

#[test]
fn a_sealed_version_that_changed_is_refused_or_sealed_anew() {
    let seal = |text: &str, reseal| Command::Seal {
        versions: vec![SealedVersion {
            kind: Kind::Prompts,
            name: "p".to_owned(),
            version: "v1".to_owned(),
            sha256: content_sha256(&json!({ "system": text })),
            partials: BTreeMap::new(),
        }],
        reseal,
    };
    let mut desk = Desk::new();
    desk.does(&seal("one", false));
    assert!(!desk.tries(&seal("one", false)).expect("the same").changed);
    assert!(desk.refused(&seal("uno", false)).contains("never changes"));
    desk.does(&seal("uno", true));
    assert_eq!(desk.shelf().history.last().map(|event| event.what), Some(What::Resealed));
}

#[test]
fn a_hash_is_of_what_is_said_and_not_of_how() {
    let one = json!({ "target": "a/b", "parameters": { "top_p": 0.5, "n": 1 }, "prompt": null });
    let other = json!({ "parameters": { "n": 1, "top_p": 0.5 }, "target": "a/b" });
    assert_eq!(content_sha256(&one), content_sha256(&other));
    assert_ne!(content_sha256(&one), content_sha256(&json!({ "target": "a/c" })));
}

#[test]
fn a_file_that_names_another_version_later_wins_until_the_next_deployment() {
    let mut desk = Desk::new();
    desk.does(&deploy("v2"));
    assert_eq!(desk.live(), "v2");
    desk.edits_file("v9");
    assert_eq!(desk.live(), "v9");
    desk.does(&deploy("v3"));
    assert_eq!(desk.live(), "v3");
    assert!(desk.shelf().history.iter().any(|event| event.what == What::FileDecided && event.version == "v9"));
    assert_eq!(desk.does(&rollback()).as_deref(), Some("v9"));
}

#[test]
fn a_pinned_version_is_not_replaced() {
    let mut desk = Desk::new();
    desk.does(&deploy("v2"));
    desk.files.prompts.get_mut("p").expect("declared").pin = true;
    assert_eq!(desk.live(), "v1");
    for command in [deploy("v3"), rollback(), rollout("v3", "1% 1h, 100%")] {
        assert!(desk.refused(&command).contains("`prompts.p.pin: true`"), "{command:?}");
    }
}

#[test]
fn a_roll_out_goes_stage_by_stage_and_then_is_live() {
    let mut desk = Desk::new();
    desk.does(&rollout("v2", "1% 10m, 50%, 100%"));
    assert_eq!((desk.live(), desk.weight()), ("v1", Some(1.0)));
    let due = |desk: &Desk, second| desk.shelf().rollout.as_ref().expect("one").is_due(at(second));
    assert!(!due(&desk, 600) && due(&desk, 700));
    desk.does(&to(Deed::AdvanceRollout { stage: 0 }));
    assert_eq!(desk.weight(), Some(50.0));
    assert!(!due(&desk, 1 << 20), "a stage without a time waits");
    assert_eq!(desk.does(&to(Deed::AdvanceRollout { stage: 0 })), None, "who comes second does nothing");
    assert!(desk.refused(&rollout("v3", "100%")).contains("on its way"));
    desk.does(&to(Deed::AdvanceRollout { stage: 1 }));
    assert_eq!((desk.live(), desk.weight()), ("v2", None));
    assert_eq!(desk.does(&rollback()).as_deref(), Some("v1"));
}

#[test]
fn a_rollback_during_a_roll_out_leads_everybody_back() {
    let mut desk = Desk::new();
    desk.does(&deploy("v2"));
    desk.does(&rollout("v3", "10% 1h, 100%"));
    assert_eq!(desk.does(&rollback()).as_deref(), Some("v2"));
    assert_eq!((desk.live(), desk.weight()), ("v2", None));
    assert_eq!(desk.does(&rollback()).as_deref(), Some("v1"));
}

#[test]
fn a_planned_deployment_happens_once_and_when_it_is_due() {
    let mut desk = Desk::new();
    let plan = |second| to(Deed::Schedule { version: "v2".to_owned(), at: at(second), reason: "later".to_owned() });
    let run = to(Deed::RunSchedule { version: "v2".to_owned() });
    assert!(desk.refused(&plan(0)).contains("is over"));
    desk.does(&plan(100));
    assert_eq!(desk.does(&run), None, "too early");
    desk.clock = 200;
    assert_eq!(desk.does(&run).as_deref(), Some("v2"));
    assert_eq!(
        desk.shelf().live.as_ref().map(|live| (live.by.as_str(), live.reason.as_str())),
        Some(("ann (planned)", "later"))
    );
    assert_eq!(desk.does(&run), None, "done already");
    desk.does(&to(Deed::Schedule { version: "v3".to_owned(), at: at(300), reason: String::new() }));
    desk.does(&to(Deed::CancelSchedule));
    assert_eq!(desk.refused(&to(Deed::CancelSchedule)), "no deployment is planned");
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    let mut desk = Desk::new();
    assert_eq!(desk.refused(&deploy("v9")), "the prompt `p` has no version `v9`; it has v1, v2, v3, v4");
    let elsewhere =
        Command::To { kind: Kind::Models, name: "m".to_owned(), deed: Deed::Rollback { reason: String::new() } };
    assert_eq!(desk.refused(&elsewhere), "no model is named `m`");
}

#[test]
fn stages_rise_to_all() {
    let stages: Stages = "1% 10m, 10% 1h,50% 90s, 100%".parse().expect("stages");
    let written: Vec<String> = stages.into_inner().iter().map(ToString::to_string).collect();
    assert_eq!(written, ["1% 10m", "10% 1h", "50% 90s", "100%"]);
    for text in [
        "",
        "1%",
        "10% 1h, 5% 1h, 100%",
        "0% 1h, 100%",
        "100% 1h, 100%",
        "1% 1y, 100%",
        "x% 1h, 100%",
        "101%",
        "1e1% 1h, 100%",
    ] {
        assert!(text.parse::<Stages>().is_err(), "{text}");
    }
}

#[test]
fn versions_order_by_their_numbers() {
    let mut names = ["v10", "v2", "1.10.0", "1.9.0", "1.10.0-rc.1", "1.10.0-rc.10", "1.10.0-rc.2", "beta"];
    names.sort_by(|a, b| compare_versions(a, b));
    assert_eq!(names, ["1.9.0", "1.10.0-rc.1", "1.10.0-rc.2", "1.10.0-rc.10", "1.10.0", "v2", "v10", "beta"]);
}

#[test]
fn a_difference_is_told_by_field_and_by_line() {
    let one = json!({ "system": "Be kind.\nBe brief.", "variables": { "name": { "type": "string" } } });
    let two = json!({ "system": "Be kind.\nBe exact.", "variables": { "name": { "type": "string" } } });
    let told = differences(("v1", &one), ("v2", &two));
    assert_eq!(told.fields.iter().map(|field| field.path.as_str()).collect::<Vec<_>>(), ["system"]);
    assert_eq!(
        told.unified,
        "--- v1\n+++ v2\n@@ -1,4 +1,4 @@\n system:\n   Be kind.\n-  Be brief.\n+  Be exact.\n variables.name.type: string\n"
    );
    assert_eq!(differences(("v1", &one), ("v1", &one)).unified, "");
}

#[test]
fn a_book_reads_back_with_what_it_does_not_know() {
    let mut desk = Desk::new();
    desk.does(&deploy("v2"));
    desk.does(&rollout("v3", "10% 1h, 100%"));
    let mut written: Value = serde_json::from_str(&desk.book.to_json()).expect("JSON");
    written["prompts"]["p"]["later"] = json!([1]);
    written["more"] = json!({ "x": null });
    let read = Book::parse(&written.to_string()).expect("a book");
    assert_eq!(serde_json::from_str::<Value>(&read.to_json()).expect("JSON"), written);
    assert!(Book::parse("[]").is_err() && Book::parse(r#"{"models": 7}"#).is_err());
}

#[test]
fn a_history_keeps_its_newest_events() {
    let mut desk = Desk::new();
    for i in 0..HISTORY_MAX {
        desk.does(&deploy(if i % 2 == 0 { "v2" } else { "v3" }));
    }
    assert_eq!(desk.shelf().history.len(), HISTORY_MAX);
    assert!(desk.shelf().history.iter().all(|event| event.what == What::Deployed));
    assert_eq!(desk.shelf().trail.len(), TRAIL_MAX);
}

fn deeds() -> impl Strategy<Value = Command> {
    let version = prop::sample::select(vec!["v1", "v2", "v3", "v4"]);
    prop_oneof![
        3 => version.clone().prop_map(deploy),
        2 => Just(rollback()),
        1 => version.prop_map(|version| rollout(version, "5% 1s, 50% 1s, 100%")),
        2 => (0_usize..3).prop_map(|stage| to(Deed::AdvanceRollout { stage })),
        1 => Just(to(Deed::AbortRollout { reason: String::new() })),
    ]
}

proptest! {
    #[test]
    fn the_history_tells_what_is_live(commands in prop::collection::vec(deeds(), 0..60)) {
        let mut desk = Desk::new();
        for command in &commands {
            let before = desk.book.clone();
            if desk.tries(command).is_err() {
                prop_assert_eq!(&desk.book, &before);
            }
            let told = desk.shelf().history.iter().rev().find(|event| event.what.changes_live());
            prop_assert_eq!(told.map_or("v1", |event| event.version.as_str()), desk.live());
            prop_assert!(desk.shelf().running(desk.files.get(Kind::Prompts, "p")).is_none_or(|rollout| rollout.from == desk.live()));
        }
    }

    #[test]
    fn as_many_rollbacks_as_deployments_lead_to_the_start(versions in prop::collection::vec(prop::sample::select(vec!["v1", "v2", "v3", "v4"]), 0..40)) {
        let mut desk = Desk::new();
        for version in &versions {
            desk.does(&deploy(version));
        }
        while desk.tries(&rollback()).is_ok() {}
        prop_assert_eq!(desk.live(), "v1");
    }

    #[test]
    fn any_texts_make_a_diff_of_their_own_lines(old in "[ab\n]{0,40}", new in "[ab\n]{0,40}") {
        let told = unified(("a", &old), ("b", &new));
        let of = |sign: char| told.lines().skip(2).filter(|line| line.starts_with(sign) || line.starts_with(' ')).count();
        let within = |text: &str| text.lines().count();
        prop_assert!(of('-') <= within(&old) && of('+') <= within(&new));
        prop_assert_eq!(told.is_empty(), old.lines().eq(new.lines()));
    }
}
