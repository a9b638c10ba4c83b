//! VMs and their adapters: the resources and their verbs.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vswitch::api::{
    AdapterName, ConsoleView, CreateAdapter, CreateVm, ErrorBody, PatchAdapter, PatchVm, VmAction,
    VmList, VmName, VmView,
};

use super::extract::{Body, Names};
use super::routes::{Answer, Created, Done};
use super::{Failure, Shared};
use crate::vm::{plug, verbs};

/// The routes of this module.
pub(super) fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(list_vms, create_vm))
        .routes(routes!(show_vm, set_vm, delete_vm))
        .routes(routes!(act))
        .routes(routes!(console))
        .routes(routes!(console_log))
        .routes(routes!(add_adapter))
        .routes(routes!(set_adapter, remove_adapter))
}

/// All VMs. Exits and drivers are as they were when a VM was last shown.
#[utoipa::path(get, path = "/v1/vms", responses((status = 200, body = VmList)))]
async fn list_vms(State(shared): State<Shared>) -> Answer<VmList> {
    Ok(Json(shared.with(|manager| Ok(manager.vms())).await?))
}

/// Makes a VM, which is off.
#[utoipa::path(post, path = "/v1/vms", request_body = CreateVm,
    responses((status = 201, body = VmView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn create_vm(State(shared): State<Shared>, Body(request): Body<CreateVm>) -> Created<VmView> {
    let name = request.name.clone();
    let view = shared.with(move |manager| {
        manager.create_vm(request)?;
        manager.show_vm(&name)
    });
    Ok((StatusCode::CREATED, Json(view.await?)))
}

/// One VM.
#[utoipa::path(get, path = "/v1/vms/{vm}", params(("vm" = VmName, Path)),
    responses((status = 200, body = VmView), (status = 404, body = ErrorBody)))]
async fn show_vm(State(shared): State<Shared>, Names(name): Names<VmName>) -> Answer<VmView> {
    let of = name.clone();
    if let Some(live) = shared.with(move |manager| manager.live_vm(&of)).await? {
        // Without the manager's lock: a VM that is slow to answer holds up nobody else.
        shared
            .blocking(move |_| {
                live.refresh();
                Ok(())
            })
            .await?;
    }
    Ok(Json(
        shared.with(move |manager| manager.show_vm(&name)).await?,
    ))
}

/// Changes a VM.
#[utoipa::path(patch, path = "/v1/vms/{vm}", params(("vm" = VmName, Path)), request_body = PatchVm,
    responses((status = 200, body = VmView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn set_vm(
    State(shared): State<Shared>,
    Names(name): Names<VmName>,
    Body(patch): Body<PatchVm>,
) -> Answer<VmView> {
    let view = shared.with(move |manager| {
        manager.set_vm(&name, &patch)?;
        manager.show_vm(&name)
    });
    Ok(Json(view.await?))
}

/// Deletes a VM that is off or saved.
#[utoipa::path(delete, path = "/v1/vms/{vm}", params(("vm" = VmName, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn delete_vm(State(shared): State<Shared>, Names(name): Names<VmName>) -> Done {
    shared.with(move |manager| manager.delete_vm(&name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tells a VM to do something, and answers when it has.
#[utoipa::path(post, path = "/v1/vms/{vm}/action", params(("vm" = VmName, Path)), request_body = VmAction,
    responses((status = 200, body = VmView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn act(
    State(shared): State<Shared>,
    Names(name): Names<VmName>,
    Body(action): Body<VmAction>,
) -> Answer<VmView> {
    let timeout = Duration::from_secs(action.check()?.into());
    let acted = shared.blocking(move |manager| {
        verbs::act(manager, &name, action.verb, timeout)?;
        Ok(name)
    });
    let name = acted.await?;
    let view = shared.with(move |manager| manager.show_vm(&name));
    Ok(Json(view.await?))
}

/// Where the serial consoles of a running VM are.
#[utoipa::path(get, path = "/v1/vms/{vm}/console", params(("vm" = VmName, Path)),
    responses((status = 200, body = ConsoleView), (status = "4XX", body = ErrorBody)))]
async fn console(State(shared): State<Shared>, Names(name): Names<VmName>) -> Answer<ConsoleView> {
    Ok(Json(
        shared.with(move |manager| manager.console(&name)).await?,
    ))
}

/// What COM1 has said since the machine was started; of much only the end.
#[utoipa::path(get, path = "/v1/vms/{vm}/console/log", params(("vm" = VmName, Path)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 404, body = ErrorBody)))]
async fn console_log(
    State(shared): State<Shared>,
    Names(name): Names<VmName>,
) -> Result<impl IntoResponse, Failure> {
    let said = shared.with(move |manager| manager.console_log(&name));
    Ok(([("content-type", "application/octet-stream")], said.await?))
}

/// Gives a VM another adapter: a legacy one while it is off, a synthetic one also while it runs.
#[utoipa::path(post, path = "/v1/vms/{vm}/adapters", params(("vm" = VmName, Path)), request_body = CreateAdapter,
    responses((status = 201, body = VmView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn add_adapter(
    State(shared): State<Shared>,
    Names(name): Names<VmName>,
    Body(request): Body<CreateAdapter>,
) -> Created<VmView> {
    let added = shared.blocking(move |manager| {
        plug::add(manager, &name, &request)?;
        Ok(name)
    });
    let name = added.await?;
    let view = shared.with(move |manager| manager.show_vm(&name));
    Ok((StatusCode::CREATED, Json(view.await?)))
}

/// Changes an adapter; connects, disconnects or moves it under a running VM.
#[utoipa::path(patch, path = "/v1/vms/{vm}/adapters/{adapter}",
    params(("vm" = VmName, Path), ("adapter" = AdapterName, Path)), request_body = PatchAdapter,
    responses((status = 200, body = VmView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn set_adapter(
    State(shared): State<Shared>,
    Names((name, adapter)): Names<(VmName, AdapterName)>,
    Body(patch): Body<PatchAdapter>,
) -> Answer<VmView> {
    let view = shared.with(move |manager| {
        manager.set_adapter(&name, adapter, &patch)?;
        manager.show_vm(&name)
    });
    Ok(Json(view.await?))
}

/// Takes an adapter from a VM: a legacy one while it is off, a synthetic one also while it runs.
#[utoipa::path(delete, path = "/v1/vms/{vm}/adapters/{adapter}",
    params(("vm" = VmName, Path), ("adapter" = AdapterName, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn remove_adapter(
    State(shared): State<Shared>,
    Names((name, adapter)): Names<(VmName, AdapterName)>,
) -> Done {
    shared
        .blocking(move |manager| plug::remove(manager, &name, adapter))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
