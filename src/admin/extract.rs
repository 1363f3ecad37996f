//! What a request brings along, read so that a mistake in it is answered as a [`Problem`].

use axum::extract::{FromRequest, FromRequestParts, Request};
use http::{StatusCode, Uri, request::Parts};
use serde::de::DeserializeOwned;
use utoipa::{IntoParams, openapi::path::ParameterIn};

use super::problem::Problem;

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

/// The query string.
#[derive(Debug)]
pub struct Query<T>(pub T);

/// The query string as two parts that stand in it side by side, such as a filter and a page. What is in neither is a mistake.
#[derive(Debug)]
pub struct Queries<A, B>(pub A, pub B);

/// What stands in the path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Json<T>, Problem> {
        let read = axum::Json::from_request(request, state).await;
        read.map(|axum::Json(body)| Json(body)).map_err(|wrong| Problem::new(wrong.status(), wrong.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned + IntoParams> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Query<T>, Problem> {
        refuse_unknown(&parts.uri, &names::<T>())?;
        query(&parts.uri).map(Query)
    }
}

impl<S: Send + Sync, A: DeserializeOwned + IntoParams, B: DeserializeOwned + IntoParams> FromRequestParts<S>
    for Queries<A, B>
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Queries<A, B>, Problem> {
        refuse_unknown(&parts.uri, &[names::<A>(), names::<B>()].concat())?;
        Ok(Queries(query(&parts.uri)?, query(&parts.uri)?))
    }
}

/// The parameters that the API's description gives.
fn names<T: IntoParams>() -> Vec<String> {
    T::into_params(|| Some(ParameterIn::Query)).into_iter().map(|parameter| parameter.name).collect()
}

fn refuse_unknown(uri: &Uri, known: &[String]) -> Result<(), Problem> {
    let pairs: Vec<(String, String)> = query(uri)?;
    match pairs.iter().find(|(name, _)| !known.contains(name)) {
        None => Ok(()),
        Some((unknown, _)) => {
            let why = format!("no parameter is named `{unknown}`; there are {}", known.join(", "));
            Err(Problem::new(StatusCode::BAD_REQUEST, why))
        }
    }
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let read = axum::extract::Query::try_from_uri(uri).map(|axum::extract::Query(query)| query);
    read.map_err(|wrong| Problem::new(wrong.status(), wrong.body_text()))
}

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Path<T>, Problem> {
        let read = axum::extract::Path::from_request_parts(parts, state).await;
        let read = read.map(|axum::extract::Path(path)| Path(path));
        read.map_err(|wrong| Problem::new(wrong.status(), wrong.body_text()))
    }
}
