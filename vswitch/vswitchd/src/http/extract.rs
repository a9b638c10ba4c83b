//! The parts of a request, with refusals in the API's own form.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use vswitch::api::{ErrorCode, Refusal, from_json};

use super::{Failure, MAX_BODY};

/// The body, parsed and checked.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|rejection| {
                let text = rejection.body_text();
                Failure(match rejection.status() {
                    StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(
                        ErrorCode::TooLarge,
                        format!("{text}; allowed: bodies of at most {MAX_BODY} bytes"),
                    ),
                    _ => Refusal::invalid(text),
                })
            })?;
        Ok(Body(from_json(&bytes)?))
    }
}

/// The names in the path.
pub(super) struct Names<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Names<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(names)) => Ok(Names(names)),
            Err(rejection) => Err(Failure(Refusal::invalid(rejection.body_text()))),
        }
    }
}

/// What follows the question mark. Unknown keys are refused by the types that are asked for.
pub(super) struct Asked<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(asked)) => Ok(Asked(asked)),
            Err(rejection) => Err(Failure(Refusal::invalid(rejection.body_text()))),
        }
    }
}
