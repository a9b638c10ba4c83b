//! The resources and their verbs. The OpenAPI document is made from the same declarations.

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use utoipa::{IntoParams, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use vswitch::api::{
    AddFdbEntry, ConfigDocument, CreateNetwork, CreatePort, ErrorBody, ErrorCode, FdbEntryView,
    FdbView, NetworkList, NetworkName, NetworkView, PatchNetwork, PatchPort, PortList, PortName,
    PortView, Refusal, StationMac, StatsView, StatusView, VlanId,
};

use super::extract::{Asked, Body, Names};
use super::{Failure, Shared, metrics};

pub(super) type Answer<T> = Result<Json<T>, Failure>;
pub(super) type Created<T> = Result<(StatusCode, Json<T>), Failure>;
pub(super) type Done = Result<StatusCode, Failure>;

#[derive(OpenApi)]
#[openapi(info(
    title = "vswitchd",
    description = "The control side of the switch. A change that fails leaves everything as it was. Every answer that \
                   is no success is an ErrorBody: 400 a value is not allowed, 403 the caller may not, 404 there is no \
                   such thing, 409 a name is taken or the state does not admit it, 413 the body is too long, 500 the \
                   host did not let it be done."
))]
struct Document;

/// All routes.
pub(super) fn routes(shared: Shared) -> Router {
    let (router, document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status))
        .routes(routes!(list_networks, create_network))
        .routes(routes!(show_network, set_network, delete_network))
        .routes(routes!(list_all_ports))
        .routes(routes!(list_ports, create_port))
        .routes(routes!(show_port, set_port, delete_port))
        .routes(routes!(show_fdb, add_fdb_entry, flush_fdb))
        .routes(routes!(delete_fdb_entry))
        .routes(routes!(stats))
        .routes(routes!(export_config))
        .routes(routes!(check_config))
        .merge(super::vms::routes())
        .split_for_parts();
    router
        .route("/openapi.json", get(|| async move { Json(document) }))
        .route("/metrics", get(show_metrics))
        .fallback(no_such_resource)
        .method_not_allowed_fallback(no_such_method)
        .with_state(shared)
}

async fn no_such_resource(uri: Uri) -> Failure {
    let message = format!(
        "there is no resource '{}'; see /openapi.json for those there are",
        uri.path()
    );
    Failure(Refusal::new(ErrorCode::NotFound, message))
}

async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let message = format!(
        "'{}' has no method {method}; see /openapi.json for those it has",
        uri.path()
    );
    Failure(Refusal::new(ErrorCode::MethodNotAllowed, message))
}

async fn show_metrics(State(shared): State<Shared>) -> Result<impl IntoResponse, Failure> {
    let (status, stats) = shared
        .with(|manager| Ok((manager.status(), manager.stats(None, None)?)))
        .await?;
    Ok((
        [("content-type", "text/plain; version=0.0.4")],
        metrics::render(&status, &stats),
    ))
}

/// Everything at a glance.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = StatusView)))]
async fn status(State(shared): State<Shared>) -> Answer<StatusView> {
    Ok(Json(shared.with(|manager| Ok(manager.status())).await?))
}

/// The whole configuration.
#[utoipa::path(get, path = "/v1/config", responses((status = 200, body = ConfigDocument)))]
async fn export_config(State(shared): State<Shared>) -> Answer<ConfigDocument> {
    Ok(Json(shared.with(|manager| Ok(manager.export())).await?))
}

/// Checks a configuration by itself, and changes nothing.
#[utoipa::path(post, path = "/v1/config/check", request_body = ConfigDocument,
    responses((status = 204, description = "It is allowed."), (status = "4XX", body = ErrorBody)))]
async fn check_config(Body(document): Body<ConfigDocument>) -> Done {
    document.check()?;
    Ok(StatusCode::NO_CONTENT)
}

/// All networks.
#[utoipa::path(get, path = "/v1/networks", responses((status = 200, body = NetworkList)))]
async fn list_networks(State(shared): State<Shared>) -> Answer<NetworkList> {
    Ok(Json(shared.with(|manager| Ok(manager.networks())).await?))
}

/// Makes a network.
#[utoipa::path(post, path = "/v1/networks", request_body = CreateNetwork,
    responses((status = 201, body = NetworkView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn create_network(
    State(shared): State<Shared>,
    Body(request): Body<CreateNetwork>,
) -> Created<NetworkView> {
    let view = shared
        .with(|manager| manager.create_network(request))
        .await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One network.
#[utoipa::path(get, path = "/v1/networks/{network}", params(("network" = NetworkName, Path)),
    responses((status = 200, body = NetworkView), (status = 404, body = ErrorBody)))]
async fn show_network(
    State(shared): State<Shared>,
    Names(name): Names<NetworkName>,
) -> Answer<NetworkView> {
    Ok(Json(
        shared
            .with(move |manager| manager.show_network(&name))
            .await?,
    ))
}

/// Changes a network under traffic.
#[utoipa::path(patch, path = "/v1/networks/{network}", params(("network" = NetworkName, Path)),
    request_body = PatchNetwork,
    responses((status = 200, body = NetworkView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn set_network(
    State(shared): State<Shared>,
    Names(name): Names<NetworkName>,
    Body(patch): Body<PatchNetwork>,
) -> Answer<NetworkView> {
    Ok(Json(
        shared
            .with(move |manager| manager.set_network(&name, &patch))
            .await?,
    ))
}

/// Deletes a network that has no ports but its own.
#[utoipa::path(delete, path = "/v1/networks/{network}", params(("network" = NetworkName, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn delete_network(State(shared): State<Shared>, Names(name): Names<NetworkName>) -> Done {
    shared
        .with(move |manager| manager.delete_network(&name))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The ports of all networks.
#[utoipa::path(get, path = "/v1/ports", responses((status = 200, body = PortList)))]
async fn list_all_ports(State(shared): State<Shared>) -> Answer<PortList> {
    Ok(Json(shared.with(|manager| manager.ports(None)).await?))
}

/// The ports of a network.
#[utoipa::path(get, path = "/v1/networks/{network}/ports", params(("network" = NetworkName, Path)),
    responses((status = 200, body = PortList), (status = 404, body = ErrorBody)))]
async fn list_ports(
    State(shared): State<Shared>,
    Names(network): Names<NetworkName>,
) -> Answer<PortList> {
    Ok(Json(
        shared
            .with(move |manager| manager.ports(Some(&network)))
            .await?,
    ))
}

/// Makes a port.
#[utoipa::path(post, path = "/v1/networks/{network}/ports", params(("network" = NetworkName, Path)),
    request_body = CreatePort,
    responses((status = 201, body = PortView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn create_port(
    State(shared): State<Shared>,
    Names(network): Names<NetworkName>,
    Body(request): Body<CreatePort>,
) -> Created<PortView> {
    let view = shared
        .with(move |manager| manager.create_port(&network, request))
        .await?;
    Ok((StatusCode::CREATED, Json(view)))
}

/// One port.
#[utoipa::path(get, path = "/v1/networks/{network}/ports/{port}",
    params(("network" = NetworkName, Path), ("port" = PortName, Path)),
    responses((status = 200, body = PortView), (status = 404, body = ErrorBody)))]
async fn show_port(
    State(shared): State<Shared>,
    Names((network, port)): Names<(NetworkName, PortName)>,
) -> Answer<PortView> {
    Ok(Json(
        shared
            .with(move |manager| manager.port(&network, &port))
            .await?,
    ))
}

/// Changes a port under traffic; it may move to another network, and is found there afterwards.
#[utoipa::path(patch, path = "/v1/networks/{network}/ports/{port}",
    params(("network" = NetworkName, Path), ("port" = PortName, Path)), request_body = PatchPort,
    responses((status = 200, body = PortView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn set_port(
    State(shared): State<Shared>,
    Names((network, port)): Names<(NetworkName, PortName)>,
    Body(patch): Body<PatchPort>,
) -> Answer<PortView> {
    Ok(Json(
        shared
            .with(move |manager| manager.set_port(&network, &port, &patch))
            .await?,
    ))
}

/// Removes a port.
#[utoipa::path(delete, path = "/v1/networks/{network}/ports/{port}",
    params(("network" = NetworkName, Path), ("port" = PortName, Path)),
    responses((status = 204), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn delete_port(
    State(shared): State<Shared>,
    Names((network, port)): Names<(NetworkName, PortName)>,
) -> Done {
    shared
        .with(move |manager| manager.delete_port(&network, &port))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The MAC table of a network.
#[utoipa::path(get, path = "/v1/networks/{network}/fdb", params(("network" = NetworkName, Path)),
    responses((status = 200, body = FdbView), (status = 404, body = ErrorBody)))]
async fn show_fdb(
    State(shared): State<Shared>,
    Names(network): Names<NetworkName>,
) -> Answer<FdbView> {
    Ok(Json(
        shared.with(move |manager| manager.fdb(&network)).await?,
    ))
}

/// Pins an address to a port.
#[utoipa::path(post, path = "/v1/networks/{network}/fdb", params(("network" = NetworkName, Path)),
    request_body = AddFdbEntry,
    responses((status = 201, body = FdbEntryView), (status = "4XX", body = ErrorBody), (status = 500, body = ErrorBody)))]
async fn add_fdb_entry(
    State(shared): State<Shared>,
    Names(network): Names<NetworkName>,
    Body(entry): Body<AddFdbEntry>,
) -> Created<FdbEntryView> {
    let view = shared
        .with(move |manager| manager.add_fdb_entry(&network, &entry))
        .await?;
    Ok((StatusCode::CREATED, Json(view)))
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct OfPort {
    /// Entries of this port only.
    port: Option<PortName>,
}

/// Forgets learned entries; static ones stay.
#[utoipa::path(delete, path = "/v1/networks/{network}/fdb", params(("network" = NetworkName, Path), OfPort),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
async fn flush_fdb(
    State(shared): State<Shared>,
    Names(network): Names<NetworkName>,
    Asked(of): Asked<OfPort>,
) -> Done {
    shared
        .with(move |manager| manager.flush_fdb(&network, of.port.as_ref()))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct InVlan {
    /// The VLAN; absent for the entry of no VLAN.
    #[param(value_type = Option<VlanId>)]
    vlan: Option<String>,
}

/// Forgets an address, static or learned.
#[utoipa::path(delete, path = "/v1/networks/{network}/fdb/{mac}",
    params(("network" = NetworkName, Path), ("mac" = StationMac, Path), InVlan),
    responses((status = 204), (status = "4XX", body = ErrorBody)))]
async fn delete_fdb_entry(
    State(shared): State<Shared>,
    Names((network, mac)): Names<(NetworkName, StationMac)>,
    Asked(of): Asked<InVlan>,
) -> Done {
    let vlan: Option<VlanId> = of.vlan.map(|text| text.parse()).transpose()?;
    shared
        .with(move |manager| manager.delete_fdb_entry(&network, mac, vlan))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Of {
    /// Ports of this network only.
    network: Option<NetworkName>,
    /// This port of the network only.
    port: Option<PortName>,
}

/// Counters since vswitchd started.
#[utoipa::path(get, path = "/v1/stats", params(Of),
    responses((status = 200, body = StatsView), (status = "4XX", body = ErrorBody)))]
async fn stats(State(shared): State<Shared>, Asked(of): Asked<Of>) -> Answer<StatsView> {
    Ok(Json(
        shared
            .with(move |manager| manager.stats(of.network.as_ref(), of.port.as_ref()))
            .await?,
    ))
}
