//! The API: HTTP and JSON on a unix socket. Nothing here is on the path of a frame.

mod access;
mod extract;
mod metrics;
mod routes;
mod vms;

use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use vswitch::api::{ErrorBody, ErrorCode, InvalidValue, Refusal};

use crate::manager::Manager;

pub(crate) use access::Access;

/// Bytes a request's body may have; the longest that is asked for, a configuration, has some 300 for each port.
const MAX_BODY: usize = 4 << 20;
/// How long connections that are busy may go on when vswitchd ends.
const GRACE: Duration = Duration::from_secs(2);

/// The manager, as handlers share it.
#[derive(Clone)]
pub(crate) struct Shared(Arc<Mutex<Manager>>);

impl Shared {
    /// Shares a manager.
    pub(crate) fn new(manager: Manager) -> Shared {
        Shared(Arc::new(Mutex::new(manager)))
    }

    /// Runs `work` alone with the manager, off the threads that serve connections. It is carried through even if the
    /// caller goes away meanwhile.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Manager) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.blocking(move |manager| {
            work(&mut manager.lock().unwrap_or_else(PoisonError::into_inner))
        })
        .await
    }

    /// Runs `work`, which locks the manager for as short as it can, off the threads that serve connections. It is
    /// carried through even if the caller goes away meanwhile.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Mutex<Manager>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let manager = self.0.clone();
        match tokio::task::spawn_blocking(move || work(&manager)).await {
            Ok(result) => result,
            Err(error) => Err(Refusal::new(
                ErrorCode::Failed,
                format!("the request was cut short: {error}"),
            )),
        }
    }
}

/// A refusal as an HTTP answer.
struct Failure(Refusal);

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure(refusal)
    }
}

impl From<InvalidValue> for Failure {
    fn from(error: InvalidValue) -> Failure {
        Failure(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            ErrorCode::Invalid => StatusCode::BAD_REQUEST,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(ErrorBody { error: self.0 })).into_response()
    }
}

/// All routes, behind the check of who may use them.
pub(crate) fn router(shared: Shared, access: Access) -> Router {
    routes::routes(shared)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(axum::middleware::from_fn_with_state(access, access::check))
}

/// Serves the API until `stop` is done; connections that are busy then have a moment to finish.
pub(crate) async fn serve(
    listener: UnixListener,
    router: Router,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    let listener =
        tokio::net::UnixListener::from_std(listener).context("cannot listen for API requests")?;
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let service = router.into_make_service_with_connect_info::<access::Peer>();
    let server = axum::serve(listener, service).with_graceful_shutdown(async {
        stop.await;
        let _ = stopping.send(());
    });
    let grace_over = async {
        let _ = stopped.await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = server.into_future() => served.context("cannot serve the API"),
        () = grace_over => Ok(()),
    }
}

#[cfg(test)]
mod tests;
