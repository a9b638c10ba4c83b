//! What is refused: method, path and body of the request, status and a part of the message of the answer.

use super::{NETWORKS, PRIVATE};

/// A refusal.
pub(super) type Refused = (&'static str, &'static str, &'static str, u16, &'static str);

pub(super) const FDB: &str = "/v1/networks/lab/fdb";
const PORTS: &str = "/v1/networks/lab/ports";
const PORT_A: &str = "/v1/networks/lab/ports/a";

pub(super) const NETWORKS_REFUSED: &[Refused] = &[
    (
        "POST",
        NETWORKS,
        PRIVATE,
        409,
        "there is a network 'lab' already",
    ),
    (
        "POST",
        NETWORKS,
        r#"{"name":"x","type":"external","uplink":"eth9"}"#,
        409,
        "no interface 'eth9'",
    ),
    (
        "POST",
        NETWORKS,
        r#"{"name":"x","type":"external","uplink":"eth0"}"#,
        409,
        "'eth0' is in use by port 'uplink'",
    ),
    (
        "POST",
        NETWORKS,
        r#"{"name":"x","type":"internal","host_nic":"vsw-lan"}"#,
        409,
        "in use by port 'host'",
    ),
    (
        "POST",
        NETWORKS,
        r#"{"name":"x","type":"internal","host_nic":"eth1"}"#,
        409,
        "an interface 'eth1' already",
    ),
    (
        "POST",
        NETWORKS,
        r#"{"name":"x","type":"private","vlan":10}"#,
        400,
        "VLAN 10 refused",
    ),
    (
        "POST",
        NETWORKS,
        r#"{"name":"x","type":"private","mtu":67}"#,
        400,
        "allowed: 68 to 9000",
    ),
    ("POST", NETWORKS, "{", 400, "no JSON"),
    ("GET", "/v1/networks/nope", "", 404, "no network 'nope'"),
    ("GET", "/v1/networks/a%20b", "", 400, "allowed: 1 to 64"),
    (
        "PATCH",
        "/v1/networks/lab",
        r#"{"vlan":10}"#,
        400,
        "VLAN 10 refused",
    ),
    ("PATCH", "/v1/networks/lab", "{}", 400, "nothing to change"),
    (
        "PATCH",
        "/v1/networks/lab",
        r#"{"name":"x"}"#,
        400,
        "unknown field `name`",
    ),
    (
        "PATCH",
        "/v1/networks/nope",
        r#"{"mtu":1400}"#,
        404,
        "no network 'nope'",
    ),
    (
        "DELETE",
        "/v1/networks/lab",
        "",
        409,
        "still has ports: 'a', 'b'",
    ),
    ("DELETE", "/v1/networks/nope", "", 404, "no network 'nope'"),
    ("PUT", NETWORKS, PRIVATE, 405, "no method PUT"),
    ("GET", "/v2/networks", "", 404, "no resource '/v2/networks'"),
];

pub(super) const PORTS_REFUSED: &[Refused] = &[
    (
        "POST",
        PORTS,
        r#"{"name":"a","tap":"t2"}"#,
        409,
        "there is a port 'a' in network 'lab' already",
    ),
    (
        "POST",
        PORTS,
        r#"{"name":"c","tap":"tap-a"}"#,
        409,
        "'tap-a' is in use by port 'a'",
    ),
    (
        "POST",
        PORTS,
        r#"{"name":"c","tap":"eth0"}"#,
        409,
        "'eth0' is in use by port 'uplink'",
    ),
    (
        "POST",
        PORTS,
        r#"{"name":"c","vhost_user":"sock"}"#,
        400,
        "an absolute path",
    ),
    (
        "POST",
        "/v1/networks/nope/ports",
        r#"{"name":"c","tap":"t"}"#,
        404,
        "no network 'nope'",
    ),
    (
        "PATCH",
        PORT_A,
        r#"{"vlan":"access:4095"}"#,
        400,
        "'access:4095' is not allowed",
    ),
    (
        "PATCH",
        PORT_A,
        r#"{"network":"nope"}"#,
        404,
        "no network 'nope'",
    ),
    (
        "PATCH",
        PORT_A,
        r#"{"network":"lan"}"#,
        409,
        "there is a port 'a' in network 'lan' already",
    ),
    (
        "PATCH",
        "/v1/networks/lab/ports/x",
        r#"{"link":"up"}"#,
        404,
        "no port 'x'",
    ),
    (
        "PATCH",
        "/v1/networks/lan/ports/host",
        r#"{"network":"lab"}"#,
        400,
        "comes and goes with its network",
    ),
    (
        "PATCH",
        "/v1/networks/lan/ports/uplink",
        r#"{"mtu":9000}"#,
        400,
        "change the network's",
    ),
    (
        "DELETE",
        "/v1/networks/lan/ports/host",
        "",
        409,
        "comes and goes with network 'lan'",
    ),
    ("DELETE", "/v1/networks/lab/ports/x", "", 404, "no port 'x'"),
    ("GET", "/v1/stats?port=a", "", 400, "without its network"),
    (
        "GET",
        "/v1/stats?network=lab&port=x",
        "",
        404,
        "no port 'x'",
    ),
    (
        "GET",
        "/v1/stats?colour=red",
        "",
        400,
        "unknown field `colour`",
    ),
];

pub(super) const FDB_REFUSED: &[Refused] = &[
    (
        "POST",
        FDB,
        r#"{"mac":"01:00:5e:00:00:01","port":"a"}"#,
        400,
        "no group address",
    ),
    (
        "POST",
        FDB,
        r#"{"mac":"02:00:00:00:00:02","port":"x"}"#,
        404,
        "no port 'x'",
    ),
    (
        "POST",
        FDB,
        r#"{"mac":"02:00:00:00:00:02","port":"a","vlan":10}"#,
        400,
        "carries no frames of VLAN 10",
    ),
    (
        "POST",
        FDB,
        r#"{"mac":"02:00:00:00:00:02","port":"b"}"#,
        400,
        "its setting is 'access:10'",
    ),
    (
        "DELETE",
        "/v1/networks/lab/fdb/02:00:00:00:00:09",
        "",
        404,
        "no entry for 02:00:00:00:00:09",
    ),
    (
        "DELETE",
        "/v1/networks/lab/fdb/xx",
        "",
        400,
        "allowed: the address of one station",
    ),
    (
        "DELETE",
        "/v1/networks/lab/fdb/02:00:00:00:00:01?vlan=4095",
        "",
        400,
        "allowed: 1 to 4094",
    ),
    (
        "DELETE",
        "/v1/networks/lab/fdb?port=x",
        "",
        404,
        "no port 'x'",
    ),
    (
        "DELETE",
        "/v1/networks/lab/fdb?mac=x",
        "",
        400,
        "unknown field",
    ),
];
