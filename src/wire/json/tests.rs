//! The scanner, the reader, the edits and the catcher against serde_json.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{push::FieldCatcher, *};

/// What another strict parser says: same grammar, no conversion of numbers or surrogates.
fn is_json_object(body: &[u8]) -> bool {
    let opens = body.trim_ascii_start().first() == Some(&b'{');
    opens && std::str::from_utf8(body).is_ok() && serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok()
}

fn text_of(body: &str, name: &str) -> Option<String> {
    let scan = scan(body.as_bytes()).ok()?;
    text(body.as_bytes(), scan.get(name)?).map(|text| text.into_owned())
}

fn problem(body: &str) -> Problem {
    scan(body.as_bytes()).expect_err(body).problem
}

#[test]
fn fields_are_found_by_their_decoded_name() {
    let body = br#" { "model" : "gpt-4o", "max_tok\u0065ns":5,"messages":[{"a":[1,{}]}],"x":null } "#;
    let scan = scan(body).unwrap();
    assert_eq!(text(body, scan.get("model").unwrap()).unwrap(), "gpt-4o");
    assert_eq!(integer(body, scan.get("max_tokens").unwrap()), Some(5));
    assert_eq!(scan.get("messages").unwrap().of(body), br#"[{"a":[1,{}]}]"#);
    assert_eq!(scan.field("messages").unwrap().kind, Kind::Array);
    assert!(is_null(body, scan.get("x").unwrap()));
    assert_eq!(scan.get("y"), None);
}

#[test]
fn what_two_parsers_could_read_differently_is_refused() {
    assert_eq!(problem(r#"{"max_tokens":1,"max_tokens":2}"#), Problem::Duplicate("max_tokens".into()));
    assert_eq!(problem(r#"{"max_tokens":1,"max_tok\u0065ns":2}"#), Problem::Duplicate("max_tokens".into()));
    let many: String = (0..100).map(|i| format!("\"k{i}\":0,")).collect();
    assert_eq!(problem(&format!("{{{many}\"k57\":1}}")), Problem::Duplicate("k57".into()));
    assert!(scan(format!("{{{many}\"k\":1}}").as_bytes()).is_ok());
    assert_eq!(problem("{}{}"), Problem::Trailing);
    assert_eq!(problem("[]"), Problem::NotAnObject);
    assert_eq!(problem("  "), Problem::Empty);
    assert_eq!(problem("{\"a\":\"\n\"}"), Problem::ControlCharacter);
    assert_eq!(scan(b"{\"a\":\"\xff\"}").unwrap_err(), JsonError { problem: Problem::Utf8, offset: 6 });
    assert_eq!(problem(r#"{"a":01}"#), Problem::Expected("`,` or `}`"));
    assert_eq!(problem(r#"{"a":1.}"#), Problem::Number);
    assert_eq!(problem(r#"{"a":"x"#), Problem::Truncated);
}

#[test]
fn nesting_is_taken_to_its_limit_and_costs_no_stack_beyond_it() {
    let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1));
    assert!(scan(nested(DEPTH_MAX).as_bytes()).is_ok());
    assert_eq!(problem(&nested(DEPTH_MAX + 1)), Problem::TooDeep);
    assert_eq!(problem(&nested(1_000_000)), Problem::TooDeep);
}

#[test]
fn duplicates_of_nested_objects_are_refused_where_they_are_asked_about() {
    let body = br#"{"stream_options":{"include_usage":true,"include_usage":false}}"#;
    let scan = scan(body).unwrap();
    let nested = object(body, scan.get("stream_options").unwrap()).unwrap_err();
    assert_eq!(nested.problem, Problem::Duplicate("include_usage".into()));
    assert_eq!(nested.offset, 40);
}

#[test]
fn whole_numbers_are_read_in_every_spelling_and_nothing_else_is() {
    let read = |spelt: &str| integer(spelt.as_bytes(), Span { start: 0, end: spelt.len() });
    for (spelt, value) in [
        ("0", 0),
        ("100", 100),
        ("1e2", 100),
        ("1E+2", 100),
        ("100.0", 100),
        ("1.50e1", 15),
        ("1000e-3", 1),
        ("-0", 0),
        ("0e999999", 0),
        ("18446744073709551615", u64::MAX),
    ] {
        assert_eq!(read(spelt), Some(value), "{spelt}");
    }
    for spelt in
        ["-1", "1.5", "1e-1", "18446744073709551616", "1e400", "1e99999999999999999999", "\"5\"", "true", "null"]
    {
        assert_eq!(read(spelt), None, "{spelt}");
    }
}

#[test]
fn text_decodes_escapes_and_survives_lone_surrogates() {
    assert_eq!(text_of(r#"{"a":"\u00e4\n\"\\\/\ud83d\ude00"}"#, "a").unwrap(), "ä\n\"\\/😀");
    assert_eq!(text_of(r#"{"a":"x\ud800y\udc00"}"#, "a").unwrap(), "x\u{fffd}y\u{fffd}");
    assert_eq!(text_of(r#"{"a":"\ud800\u0041"}"#, "a").unwrap(), "\u{fffd}A");
    assert_eq!(text_of(r#"{"a":5}"#, "a"), None);
}

#[test]
fn elements_and_nested_fields_are_found_without_a_tree() {
    let body = br#"{"tools":[ {"type":"function","a":{"type":"inner"}} , 1,[2] ]}"#;
    let tools = scan(body).unwrap().get("tools").unwrap();
    let found: Vec<&[u8]> = elements(body, tools).map(|span| span.of(body)).collect();
    assert_eq!(found, [&br#"{"type":"function","a":{"type":"inner"}}"#[..], b"1", b"[2]"]);
    let first = elements(body, tools).next().unwrap();
    assert_eq!(text(body, field(body, first, "type").unwrap()).unwrap(), "function");
    assert_eq!(field(body, first, "b"), None);
    let mut seen = Vec::new();
    walk(body, tools, |key, at| seen.push((text(body, key).unwrap(), string_at(body, at))));
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2], ("type".into(), Some("inner".into())));
}

#[test]
fn words_below_the_top_level_are_never_missed() {
    let holds = |body: &str| scan(body.as_bytes()).unwrap().may_hold("image_url");
    assert!(holds(r#"{"messages":[{"content":[{"type":"image_url"}]}]}"#));
    assert!(holds(r#"{"messages":[{"image_url":1}]}"#));
    assert!(holds(r#"{"messages":[{"im\u0061ge_url":1}]}"#));
    assert!(!holds(r#"{"model":"gpt-4o","messages":[{"role":"user","content":"Hello, how are you today?"}]}"#));
}

#[test]
fn edits_keep_their_commas_right() {
    let edited = |body: &str, edit: fn(&mut Edits, &Scan)| {
        let scan = scan(body.as_bytes()).unwrap();
        let mut edits = Edits::new();
        edit(&mut edits, &scan);
        String::from_utf8(edits.apply(&Bytes::from(body.to_owned())).to_vec()).unwrap()
    };
    let add_two: fn(&mut Edits, &Scan) = |edits, scan| {
        edits.set_field(scan, "x", "1");
        edits.set_field(scan, "y", "2");
        edits.set_field(scan, "x", "3");
    };
    assert_eq!(edited("{}", add_two), r#"{"x":3,"y":2}"#);
    assert_eq!(edited(r#"{ "a":0}"#, add_two), r#"{"x":3,"y":2, "a":0}"#);
    assert_eq!(edited(r#"{"x":0, "a":0}"#, add_two), r#"{"y":2,"x":3, "a":0}"#);
    let swap: fn(&mut Edits, &Scan) = |edits, scan| {
        edits.remove_field(scan, "a");
        edits.remove_field(scan, "b");
        edits.set_field(scan, "c", "9");
    };
    assert_eq!(edited(r#"{"a":0}"#, swap), r#"{"c":9}"#);
    assert_eq!(edited(r#"{"z":0, "a":0 , "b":1}"#, swap), r#"{"c":9,"z":0}"#);
    assert_eq!(edited(r#"{"a":0, "z":0, "b":1}"#, swap), r#"{"c":9,"z":0}"#);
    assert_eq!(edited(r#"{"a":0,"b":1,"c":2}"#, swap), r#"{"c":9}"#);
    let back: fn(&mut Edits, &Scan) = |edits, scan| {
        edits.remove_field(scan, "a");
        edits.set_field(scan, "a", "1");
    };
    assert_eq!(edited(r#"{"a":0,"b":1}"#, back), r#"{"a":1,"b":1}"#);
}

#[test]
fn array_elements_are_added_at_both_ends() {
    let edited = |body: &'static str| {
        let array = scan(body.as_bytes()).unwrap().get("a").unwrap();
        let mut edits = Edits::new();
        edits.prepend_element(body.as_bytes(), array, "1");
        edits.prepend_element(body.as_bytes(), array, "2");
        edits.append_element(body.as_bytes(), array, "9");
        String::from_utf8(edits.apply(&Bytes::from(body)).to_vec()).unwrap()
    };
    assert_eq!(edited(r#"{"a":[]}"#), r#"{"a":[1,2,9]}"#);
    assert_eq!(edited(r#"{"a":[ 5 ]}"#), r#"{"a":[1,2, 5 ,9]}"#);
}

#[test]
fn no_edits_give_the_same_bytes_without_a_copy() {
    let body = Bytes::from_static(b"{ }");
    assert_eq!(Edits::new().apply(&body).as_ptr(), body.as_ptr());
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        // Not every f64: serde_json reads long decimals inexactly.
        any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
        "\\PC{0,40}".prop_map(Value::from),
        "[\\x00-\\x7f]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-c\"\\\\é\\n]{0,3}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn any_object() -> impl Strategy<Value = Value> {
    prop::collection::hash_map("[a-d\"\\\\é\\n]{0,3}", any_json(), 0..8)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}

proptest! {
    #[test]
    fn a_scan_finds_what_serde_json_parses(value in any_object(), pretty: bool) {
        let body = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.unwrap();
        let scan = scan(&body).unwrap();
        let expected = value.as_object().unwrap();
        prop_assert_eq!(scan.fields().len(), expected.len());
        for (name, value) in expected {
            let raw = scan.get(name).unwrap().of(&body);
            prop_assert_eq!(&serde_json::from_slice::<Value>(raw).unwrap(), value);
            if let Some(expected) = value.as_str() {
                prop_assert_eq!(text(&body, scan.get(name).unwrap()).unwrap(), expected);
            }
        }
    }

    #[test]
    fn damaged_bodies_are_taken_exactly_when_serde_json_takes_them(
        value in any_object(), at: prop::sample::Index, byte in prop::sample::select(&b"{}[]\",:\\u0e.-+t \n\x01\xff"[..]), how in 0..3,
    ) {
        let mut body = serde_json::to_vec(&value).unwrap();
        let at = at.index(body.len());
        match how {
            0 => body[at] = byte,
            1 => body.insert(at, byte),
            _ => body.truncate(at),
        }
        match scan(&body) {
            Ok(_) => prop_assert!(is_json_object(&body)),
            Err(JsonError { problem: Problem::Duplicate(_), .. }) => {}
            Err(error) => prop_assert!(!is_json_object(&body), "{}", error),
        }
    }

    #[test]
    fn an_edited_body_parses_to_the_declared_edit(
        value in any_object(), new in any_json(), names in prop::collection::vec("[a-d\"é]{0,2}", 1..4), removed in "[a-d]{0,2}",
    ) {
        let body = Bytes::from(serde_json::to_vec(&value).unwrap());
        let scan = scan(&body).unwrap();
        let mut edits = Edits::new();
        let mut expected = value.as_object().unwrap().clone();
        expected.remove(&removed);
        edits.remove_field(&scan, &removed);
        for name in names.iter().filter(|name| **name != removed) {
            edits.set_field(&scan, name, new.to_string());
            expected.insert(name.clone(), new.clone());
        }
        let edited: Value = serde_json::from_slice(&edits.apply(&body)).unwrap();
        prop_assert_eq!(edited, Value::Object(expected));
    }

    #[test]
    fn escaped_text_parses_back(text in any::<String>()) {
        prop_assert_eq!(serde_json::from_slice::<Value>(&quoted(&text)).unwrap(), json!(text));
    }

    #[test]
    fn a_catcher_catches_the_same_whatever_the_cuts(
        value in any_object(), usage in any_json(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut whole = value.as_object().unwrap().clone();
        whole.insert("usage".into(), usage.clone());
        let body = serde_json::to_vec(&whole).unwrap();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).chain([0, body.len()]).collect();
        cuts.sort_unstable();
        let mut catcher = FieldCatcher::new(&["error", "usage"]);
        cuts.windows(2).for_each(|cut| catcher.push(&body[cut[0]..cut[1]]));
        let caught: Value = serde_json::from_slice(catcher.get("usage").unwrap()).unwrap();
        prop_assert_eq!(caught, usage);
        prop_assert_eq!(catcher.get("error"), None);
        prop_assert!(catcher.is_done());
    }

    #[test]
    fn a_catcher_survives_anything(bytes in prop::collection::vec(prop::sample::select(&b"{}[]\",:\\usage1 "[..]), 0..200)) {
        let mut whole = FieldCatcher::new(&["usage"]);
        whole.push(&bytes);
        let mut single = FieldCatcher::new(&["usage"]);
        bytes.iter().for_each(|byte| single.push(&[*byte]));
        prop_assert_eq!(whole.get("usage"), single.get("usage"));
    }
}

#[test]
fn an_endless_value_is_passed_over_in_constant_memory() {
    let body = format!(r#"{{"usage":"{}","error":{{"message":"x"}} }}"#, "x".repeat(1 << 20));
    let mut catcher = FieldCatcher::new(&["usage", "error"]);
    body.as_bytes().chunks(1000).for_each(|chunk| catcher.push(chunk));
    assert_eq!(catcher.get("usage"), None);
    assert_eq!(catcher.get("error"), Some(&br#"{"message":"x"}"#[..]));
}
