//! How a request is refused.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::values::InvalidValue;

/// The kind of a refusal, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed, or a value or a combination of values is not allowed.
    Invalid,
    /// The caller may not use this API.
    Forbidden,
    /// There is no such resource.
    NotFound,
    /// The resource has no such method.
    MethodNotAllowed,
    /// A name, interface or socket is taken, or the state does not admit the change.
    Conflict,
    /// The body is longer than any request.
    TooLarge,
    /// The host did not let it be done; everything is as it was.
    Failed,
}

/// A refusal: what was refused, with the value, and what is allowed.
#[derive(
    Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error, utoipa::ToSchema,
)]
#[error("{message}")]
pub struct Refusal {
    /// The kind, for programs.
    pub code: ErrorCode,
    /// One line for people.
    pub message: String,
}

impl Refusal {
    /// A refusal of kind `code`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
        }
    }

    /// A value or a combination of values is not allowed.
    pub fn invalid(message: impl Into<String>) -> Refusal {
        Refusal::new(ErrorCode::Invalid, message)
    }

    /// A name, interface or socket is taken, or the state does not admit the change.
    pub fn conflict(message: impl Into<String>) -> Refusal {
        Refusal::new(ErrorCode::Conflict, message)
    }
}

impl From<InvalidValue> for Refusal {
    fn from(error: InvalidValue) -> Refusal {
        Refusal::invalid(error.to_string())
    }
}

/// The body of every answer that is no success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ErrorBody {
    /// The refusal.
    pub error: Refusal,
}

/// Parses the body of a request. Unknown and repeated keys are refused.
pub fn from_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let text = error.to_string();
        // Where the JSON is sound, the position adds nothing to a message that names the value.
        let message = if error.is_data() {
            let position = format!(" at line {} column {}", error.line(), error.column());
            text.strip_suffix(&position).unwrap_or(&text).to_owned()
        } else {
            format!("the body is no JSON: {text}")
        };
        Refusal::invalid(message)
    })
}

/// For keys where `null` means something: absent is `None`, `null` is `Some(None)`.
pub(super) fn present<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}
