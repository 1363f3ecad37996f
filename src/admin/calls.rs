//! `/api/calls` and `/api/feedback`: the call log, call by call, and as a file, and what is said of calls.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::stream;
use http::{StatusCode, Uri, header};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        Ref, RefOr, Schema,
        schema::{ArrayBuilder, ObjectBuilder, SchemaType, Type},
    },
};

use super::{
    Admin,
    extract::{Path, Queries},
    guard::Access,
    openapi::{Api, routes},
    paging::{self, Page, ROWS_MAX},
    problem::Problem,
};
use crate::{
    config::snapshot::Role,
    record::{Feedback, Outcome, Rating, UserIds, stored_id},
    store::{
        ports::StoreError,
        records::{
            export::{Exported, write_json_line},
            feedback::{self, FeedbackFilter},
            ports::{Bodies, Body as KeptBody, CallLog, Filter},
        },
    },
};

/// Calls of one page, unless more or fewer are asked for.
const PAGE: usize = 100;

pub(super) fn router() -> Api {
    Api::default()
        .routes(routes!(list))
        .routes(routes!(export))
        .routes(routes!(show))
        .routes(routes!(bodies))
        .routes(routes!(feedback_list))
}

/// Which calls: those that fulfil all that is given.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filters {
    /// Received then or later: `2026-11-23T18:00:00Z`, or so long ago: `30m`, `2h`, `7d`.
    pub(super) since: Option<String>,
    /// Received before then.
    pub(super) until: Option<String>,
    /// Of a model: an alias, `provider/model`, or `other`.
    pub(super) model: Option<String>,
    /// Of a team.
    pub(super) team: Option<String>,
    /// Of a key, by its name.
    pub(super) key: Option<String>,
    /// Of a user. Where users are stored hashed, the plain id finds them too.
    pub(super) user: Option<String>,
    /// Of a session.
    pub(super) session: Option<String>,
    /// Whose last attempt was at this provider.
    pub(super) provider: Option<String>,
    /// Of an endpoint, such as `chat_completions`.
    pub(super) endpoint: Option<String>,
    /// That ended so: `ok`, `refused`, `upstream_error`, `upstream_failed`, `cut`, `abandoned` or `internal`.
    pub(super) outcome: Option<String>,
    /// `true`: only those that failed.
    pub(super) errors: Option<bool>,
    /// Assigned to a variant: `experiment=variant`.
    pub(super) variant: Option<String>,
    /// With a tag: `name=value`.
    pub(super) tag: Option<String>,
}

impl Filters {
    /// What is asked of the log, whose users are stored as `users`.
    pub(super) fn read(self, users: UserIds, now: Timestamp) -> Result<Filter, Problem> {
        let moment_of = |name, text: Option<String>| text.map(|text| moment(name, &text, now)).transpose();
        let outcome_of = |label: String| {
            let labels = || Outcome::ALL.map(Outcome::label).join(", ");
            Outcome::of_label(&label).ok_or_else(|| wrong(format!("`outcome` is one of {}", labels())))
        };
        Ok(Filter {
            since_ms: moment_of("since", self.since)?,
            until_ms: moment_of("until", self.until)?,
            model: self.model,
            team: self.team,
            key: self.key,
            user: self.user.map(|user| stored(&user, users)),
            session: self.session.map(|session| stored(&session, users)),
            provider: self.provider,
            endpoint: self.endpoint,
            outcome: self.outcome.map(outcome_of).transpose()?,
            errors: self.errors.unwrap_or_default(),
            variant: self.variant.map(|text| pair("variant", &text)).transpose()?,
            tag: self.tag.map(|text| pair("tag", &text)).transpose()?,
        })
    }
}

/// What was shown by the log is found as it is.
fn stored(id: &str, users: UserIds) -> String {
    match id.starts_with("sha256:") {
        true => id.to_owned(),
        false => stored_id(id.into(), users).to_string(),
    }
}

fn pair(name: &str, text: &str) -> Result<(String, String), Problem> {
    let pair = text.split_once('=').map(|(one, other)| (one.to_owned(), other.to_owned()));
    pair.ok_or_else(|| wrong(format!("write `{name}` as `name=value`, its `=` as %3D")))
}

/// Milliseconds since 1970.
pub(super) fn moment(name: &str, text: &str, now: Timestamp) -> Result<u64, Problem> {
    let at = text.parse::<Timestamp>().ok().or_else(|| now.checked_sub(length(text)?).ok());
    let ms = at.and_then(|at| u64::try_from(at.as_millisecond()).ok());
    ms.ok_or_else(|| wrong(format!("write `{name}` as 2026-11-23T18:00:00Z, or as 30m, 2h or 7d ago")))
}

/// `90s`, `30m`, `2h`, `7d`.
pub(super) fn length(text: &str) -> Option<Duration> {
    let number = text.strip_suffix(['s', 'm', 'h', 'd'])?;
    let unit_s = match text.as_bytes().last()? {
        b's' => 1,
        b'm' => 60,
        b'h' => 3600,
        _ => 86_400,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.checked_mul(unit_s)?))
}

pub(super) fn wrong(why: String) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, why)
}

/// A finished call: its fields are the columns of the call log (docs/calls.md).
#[derive(Serialize)]
#[serde(transparent)]
struct Call<'r>(Exported<'r>);

/// A finished call with what is said of it: its fields are the columns of the call log, and `feedback`.
#[derive(Serialize)]
struct CallShown<'r> {
    #[serde(flatten)]
    call: Call<'r>,
    feedback: Vec<Rated>,
}

/// One value of one metric of a call or session.
#[derive(Debug, Serialize, ToSchema)]
struct Rated {
    /// Its id. Ids sort by time.
    id: String,
    /// The call's id, or
    call: Option<String>,
    /// the session as stored.
    session: Option<String>,
    /// The metric.
    metric: String,
    /// `true`, `false`, a number or a word.
    #[schema(value_type = Object)]
    value: Rating,
    /// Who says so, in the client's words.
    source: String,
    /// A remark, redacted. Shown to operators.
    comment: Option<String>,
    /// The key by which it came.
    key: String,
    /// Its team.
    team: Option<String>,
    /// When it came: milliseconds since 1970.
    rated_ms: u64,
}

/// Which ratings: those that fulfil all that is given.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct FeedbackFilters {
    /// Given then or later: `2026-11-23T18:00:00Z`, or so long ago: `30m`, `2h`, `7d`.
    since: Option<String>,
    /// Given before then.
    until: Option<String>,
    /// Of a call, by its id.
    call: Option<String>,
    /// Of a session. Where sessions are stored hashed, the plain id finds them too.
    session: Option<String>,
    /// Of a metric.
    metric: Option<String>,
    /// From a source.
    source: Option<String>,
}

/// What a call sent and received, redacted, as far as it was kept.
#[derive(Debug, Serialize, ToSchema)]
struct CallBodies {
    /// The request's body, content coding removed.
    request: Option<CallBody>,
    /// The reply's body.
    reply: Option<CallBody>,
}

/// One body.
#[derive(Debug, Serialize, ToSchema)]
struct CallBody {
    /// Its text, or the first part of it.
    text: String,
    /// Its whole length, in bytes.
    bytes: u64,
    /// Whether `text` is less than all of it.
    cut: bool,
}

/// Calls, the latest first
///
/// The `Link` header names the next page, where there is one. A page has 100 calls unless another `limit` is given.
#[utoipa::path(get, path = "/api/calls", tag = "calls", operation_id = "list_calls", params(Filters, Page),
    responses((status = OK, body = Vec<Call>), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn list(
    State(admin): State<Admin>,
    uri: Uri,
    Queries(filters, page): Queries<Filters, Page>,
) -> Result<Response, Problem> {
    let log = log(&admin)?;
    let filter = filters.read(users(&admin), Timestamp::now())?;
    let found = log.page(filter, page.after.as_deref().map(Arc::from), page.size(PAGE)).await?;
    let rows: Vec<Call<'_>> = found.rows.iter().map(|row| Call(row.into())).collect();
    Ok(paging::respond(&rows, &uri, found.next.as_deref()))
}

/// One call, and what is said of it
///
/// Of feedback only what came by a key of the call's team is shown; where its key has none, by that key.
#[utoipa::path(get, path = "/api/calls/{id}", tag = "calls", operation_id = "show_call",
    params(("id" = String, Path, description = "As in `x-tollgate-call`")),
    responses((status = OK, body = CallShown), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn show(State(admin): State<Admin>, access: Access, Path(id): Path<String>) -> Result<Response, Problem> {
    let log = log(&admin)?;
    let row = log.get(id.as_str().into()).await?.ok_or_else(|| no_call(&id))?;
    let feedback = rated(feedback::of_call(&*log, &row).await?, &access);
    Ok(Json(CallShown { call: Call((&row).into()), feedback }).into_response())
}

/// What is said of calls and sessions, the latest first
///
/// The `Link` header names the next page, where there is one. A page has 100 ratings unless another `limit` is given. Feedback of
/// keys of other teams, which counts for nothing, is listed too.
#[utoipa::path(get, path = "/api/feedback", tag = "calls", operation_id = "list_feedback", params(FeedbackFilters, Page),
    responses((status = OK, body = Vec<Rated>), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn feedback_list(
    State(admin): State<Admin>,
    access: Access,
    uri: Uri,
    Queries(filters, page): Queries<FeedbackFilters, Page>,
) -> Result<Response, Problem> {
    let log = log(&admin)?;
    let filter = filters.read(users(&admin), Timestamp::now())?;
    let found = log.feedback(filter, page.after.as_deref().map(Arc::from), page.size(PAGE)).await?;
    Ok(paging::respond(&rated(found.rows, &access), &uri, found.next.as_deref()))
}

/// What one call sent and received
///
/// Takes the role `operator`. Only where `calls.bodies` keeps them; 404 otherwise.
#[utoipa::path(get, path = "/api/calls/{id}/bodies", tag = "calls", operation_id = "show_bodies",
    params(("id" = String, Path, description = "As in `x-tollgate-call`")),
    responses((status = OK, body = CallBodies), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn bodies(State(admin): State<Admin>, Path(id): Path<String>) -> Result<Json<CallBodies>, Problem> {
    let bodies = log(&admin)?.bodies(id.as_str().into()).await?;
    let none = || Problem::not_found(format!("no bodies of a call `{id}` are kept: see `calls.bodies`"));
    bodies.map(|bodies| Json(bodies.into())).ok_or_else(none)
}

/// In which form.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Form {
    /// `jsonl`: a JSON object a line. There is no other.
    format: Option<String>,
}

/// Calls as a file, the latest first
///
/// Streamed: it may be of any size. A store that fails on the way breaks the transfer off.
#[utoipa::path(get, path = "/api/calls/export", tag = "calls", operation_id = "export_calls", params(Filters, Form),
    responses((status = OK, body = String, content_type = "application/x-ndjson"), (status = NOT_FOUND, body = Problem),
        (status = SERVICE_UNAVAILABLE, body = Problem)))]
async fn export(
    State(admin): State<Admin>,
    Queries(filters, form): Queries<Filters, Form>,
) -> Result<Response, Problem> {
    if form.format.is_some_and(|format| format != "jsonl") {
        return Err(wrong("`format` is `jsonl`; `tollgate calls export` writes Parquet too".to_owned()));
    }
    let log = log(&admin)?;
    let mut filter = filters.read(users(&admin), Timestamp::now())?;
    // What comes in meanwhile is not part of it.
    filter.until_ms = filter.until_ms.or_else(|| u64::try_from(Timestamp::now().as_millisecond()).ok());
    let first = lines(&*log, filter.clone(), None).await?;
    let pages = stream::try_unfold(Some(first), move |page| {
        let (log, filter) = (log.clone(), filter.clone());
        async move {
            let Some((text, next)) = page else { return Ok::<_, StoreError>(None) };
            let following = match next {
                Some(next) => Some(lines(&*log, filter, Some(next)).await?),
                None => None,
            };
            Ok(Some((text, following)))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"calls.jsonl\""),
    ];
    Ok((headers, Body::from_stream(pages)).into_response())
}

/// A page as lines, and where the next one begins.
async fn lines(
    log: &dyn CallLog,
    filter: Filter,
    after: Option<Arc<str>>,
) -> Result<(Bytes, Option<Arc<str>>), StoreError> {
    let page = log.page(filter, after, ROWS_MAX).await?;
    let mut text = Vec::new();
    for row in &page.rows {
        write_json_line(row, &mut text).expect("memory takes what is written to it");
    }
    Ok((text.into(), page.next))
}

/// The call log, where one is kept.
pub(super) fn log(admin: &Admin) -> Result<Arc<dyn CallLog>, Problem> {
    let calls = admin.shared.calls.as_ref();
    calls.map(|calls| calls.log.clone()).ok_or_else(|| Problem::not_found("no calls are kept: `records: none`"))
}

/// How users are stored.
pub(super) fn users(admin: &Admin) -> UserIds {
    admin.shared.live.load_full().calls.users
}

fn no_call(id: &str) -> Problem {
    Problem::not_found(format!("no call in the log has the id `{id}`"))
}

/// Comments may say what prompts say, so they are for those who may see prompts.
fn rated(feedback: Vec<Feedback>, access: &Access) -> Vec<Rated> {
    let comments = access.may(Role::Operator);
    let shown = |rating: Feedback| Rated::from(Feedback { comment: rating.comment.filter(|_| comments), ..rating });
    feedback.into_iter().map(shown).collect()
}

impl FeedbackFilters {
    fn read(self, users: UserIds, now: Timestamp) -> Result<FeedbackFilter, Problem> {
        let moment_of = |name, text: Option<String>| text.map(|text| moment(name, &text, now)).transpose();
        Ok(FeedbackFilter {
            since_ms: moment_of("since", self.since)?,
            until_ms: moment_of("until", self.until)?,
            call: self.call,
            session: self.session.map(|session| stored(&session, users)),
            metric: self.metric,
            source: self.source,
            owner: None,
        })
    }
}

impl From<Feedback> for Rated {
    fn from(rating: Feedback) -> Rated {
        let text = |text: Option<Arc<str>>| text.map(|text| text.to_string());
        Rated {
            id: rating.id.to_string(),
            call: text(rating.call),
            session: text(rating.session),
            metric: rating.metric.to_string(),
            value: rating.value,
            source: rating.source.to_string(),
            comment: text(rating.comment),
            key: rating.key.to_string(),
            team: text(rating.team),
            rated_ms: rating.rated_ms,
        }
    }
}

impl From<Bodies> for CallBodies {
    fn from(bodies: Bodies) -> CallBodies {
        let body = |body: KeptBody| CallBody { text: body.text, bytes: body.bytes, cut: body.cut };
        CallBodies { request: bodies.request.map(body), reply: bodies.reply.map(body) }
    }
}

// === the description of a call ===

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Flag,
    /// A map of texts.
    Map,
    /// A list of objects.
    List,
}

/// Each column, whether it may be absent, and what it holds. A test holds this against a row.
const COLUMNS: [(&str, Kind, bool); 40] = [
    ("id", Kind::Text, false),
    ("received_ms", Kind::Integer, false),
    ("endpoint", Kind::Text, false),
    ("key", Kind::Text, false),
    ("team", Kind::Text, true),
    ("user", Kind::Text, false),
    ("session", Kind::Text, true),
    ("tags", Kind::Map, false),
    ("model", Kind::Text, false),
    ("named", Kind::Text, true),
    ("version", Kind::Text, true),
    ("variants", Kind::List, false),
    ("prompt", Kind::Text, true),
    ("provider", Kind::Text, false),
    ("target", Kind::Text, true),
    ("status", Kind::Integer, false),
    ("outcome", Kind::Text, false),
    ("refusal", Kind::Text, true),
    ("streamed", Kind::Flag, false),
    ("input_tokens", Kind::Integer, false),
    ("cached_tokens", Kind::Integer, false),
    ("cache_write_tokens", Kind::Integer, false),
    ("cache_write_1h_tokens", Kind::Integer, false),
    ("input_audio_tokens", Kind::Integer, false),
    ("cached_audio_tokens", Kind::Integer, false),
    ("output_tokens", Kind::Integer, false),
    ("reasoning_tokens", Kind::Integer, false),
    ("output_audio_tokens", Kind::Integer, false),
    ("usage_source", Kind::Text, false),
    ("cost_nanousd", Kind::Integer, false),
    ("priced", Kind::Flag, false),
    ("prices", Kind::Text, true),
    ("attempts", Kind::Integer, false),
    ("attempt_list", Kind::List, false),
    ("read_us", Kind::Integer, false),
    ("waited_us", Kind::Integer, false),
    ("overhead_us", Kind::Integer, true),
    ("first_token_us", Kind::Integer, true),
    ("duration_us", Kind::Integer, false),
    ("cost_usd", Kind::Text, false),
];

impl PartialSchema for Call<'_> {
    fn schema() -> RefOr<Schema> {
        columns("A finished call: its fields are the columns of the call log (docs/calls.md).").into()
    }
}

impl PartialSchema for CallShown<'_> {
    fn schema() -> RefOr<Schema> {
        let said = ArrayBuilder::new().items(Ref::from_schema_name(Rated::name()));
        columns("A finished call with what is said of it: the columns of the call log (docs/calls.md), and `feedback`.")
            .property("feedback", said)
            .required("feedback")
            .into()
    }
}

impl ToSchema for CallShown<'_> {
    fn name() -> std::borrow::Cow<'static, str> {
        "CallShown".into()
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Rated::name().into_owned(), Rated::schema()));
    }
}

fn columns(description: &str) -> ObjectBuilder {
    let object = ObjectBuilder::new().description(Some(description));
    COLUMNS
        .into_iter()
        .fold(object, |object, (name, kind, optional)| object.property(name, column(kind, optional)).required(name))
}

impl ToSchema for Call<'_> {
    fn name() -> std::borrow::Cow<'static, str> {
        "Call".into()
    }
}

fn column(kind: Kind, optional: bool) -> RefOr<Schema> {
    let simple = |kind: Type| {
        let kinds = if optional { SchemaType::from_iter([kind, Type::Null]) } else { SchemaType::new(kind) };
        ObjectBuilder::new().schema_type(kinds).into()
    };
    match kind {
        Kind::Text => simple(Type::String),
        Kind::Integer => simple(Type::Integer),
        Kind::Flag => simple(Type::Boolean),
        Kind::Map => simple(Type::Object),
        Kind::List => ArrayBuilder::new().items(ObjectBuilder::new()).into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::record::CallRow;

    fn row() -> CallRow {
        let nothing: serde_json::Map<String, Value> = COLUMNS
            .iter()
            .filter(|(name, ..)| *name != "cost_usd")
            .map(|(name, kind, optional)| {
                let value = match (kind, *name) {
                    _ if *optional => Value::Null,
                    (_, "outcome") => json!("ok"),
                    (_, "usage_source") => json!("provider"),
                    (Kind::Text, _) => json!("x"),
                    (Kind::Integer, _) => json!(1),
                    (Kind::Flag, _) => json!(true),
                    (Kind::Map, _) => json!({}),
                    (Kind::List, _) => json!([]),
                };
                ((*name).to_owned(), value)
            })
            .collect();
        serde_json::from_value(nothing.into()).expect("each column is a field of its kind")
    }

    #[test]
    fn the_description_has_each_column_and_no_other() {
        let shown = serde_json::to_value(Call((&row()).into())).expect("JSON");
        let shown: Vec<&str> = shown.as_object().expect("an object").keys().map(String::as_str).collect();
        assert_eq!(shown, COLUMNS.map(|(name, ..)| name));
    }

    #[test]
    fn a_filter_is_read_or_refused_with_the_mend() {
        let now: Timestamp = "2026-11-23T20:00:00Z".parse().expect("a time");
        let filters = || Filters {
            since: Some("2h".to_owned()),
            until: Some("2026-11-23T19:00:00+00:00".to_owned()),
            user: Some("ann".to_owned()),
            outcome: Some("cut".to_owned()),
            tag: Some("app=a=b".to_owned()),
            ..Filters::default()
        };
        let filter = filters().read(UserIds::Hash, now).expect("valid");
        assert_eq!((filter.since_ms, filter.until_ms), (Some(1_795_456_800_000), Some(1_795_460_400_000)));
        assert!(filter.user.as_ref().is_some_and(|user| user.starts_with("sha256:")));
        assert_eq!((filter.outcome, filter.tag), (Some(Outcome::Cut), Some(("app".to_owned(), "a=b".to_owned()))));
        let again = Filters { user: filter.user.clone(), ..filters() }.read(UserIds::Hash, now).expect("valid");
        assert_eq!(again.user, filter.user, "what the log shows is found");

        let some = |text: &str| Some(text.to_owned());
        for bad in [
            Filters { since: some("yesterday"), ..filters() },
            Filters { since: some("99999999999999999999d"), ..filters() },
            Filters { until: some("1960-01-01T00:00:00Z"), ..filters() },
            Filters { until: some("ä"), ..filters() },
            Filters { outcome: some("fine"), ..filters() },
            Filters { variant: some("tone"), ..filters() },
        ] {
            assert!(bad.clone().read(UserIds::Plain, now).is_err(), "{bad:?}");
        }
    }
}
