//! What each command asks of vswitchd, and how the answer is shown.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::time::Duration;

use hyper::Method;
use serde::de::DeserializeOwned;
use vswitch::api::{
    AddFdbEntry, CreateNetwork, CreatePort, NetworkList, NetworkName, NetworkView, PatchNetwork,
    PatchPort, PortList, PortName, StatsView, VhostUserMode,
};

use crate::cli::{FdbVerb, NetworkCreate, NetworkVerb, Noun, PortSet, PortVerb, StatsArgs};
use crate::client::{Answer, Client};
use crate::show;

/// Carries a command out.
pub(crate) struct Runner {
    pub(crate) client: Client,
    pub(crate) json: bool,
}

impl Runner {
    pub(crate) fn run(&self, noun: Noun) -> anyhow::Result<()> {
        match noun {
            Noun::Status => self.show("/v1/status", show::status),
            Noun::Network(verb) => self.network(verb),
            Noun::Port(verb) => self.port(verb),
            Noun::Fdb(verb) => self.fdb(verb),
            Noun::Vm(verb) => self.vm(verb),
            Noun::Adapter(verb) => self.adapter(verb),
            Noun::Stats(args) => self.stats(&args),
            Noun::Config(verb) => self.config(verb),
            // Needs no vswitchd, and was carried out before.
            Noun::Completion { .. } => Ok(()),
        }
    }

    fn network(&self, verb: NetworkVerb) -> anyhow::Result<()> {
        match verb {
            NetworkVerb::Create(NetworkCreate {
                name,
                kind,
                uplink,
                host_nic,
                no_host_nic,
                vlan,
                mtu,
                ageing,
            }) => {
                let done = format!("network '{name}' created");
                let request = CreateNetwork {
                    name,
                    kind,
                    uplink,
                    host_nic,
                    no_host_nic,
                    vlan,
                    mtu,
                    ageing,
                };
                self.done(
                    self.client.send(Method::POST, "/v1/networks", &request)?,
                    done,
                )
            }
            NetworkVerb::List => self.show("/v1/networks", |list: &NetworkList| {
                show::networks(&list.networks)
            }),
            NetworkVerb::Show { name } => self.show(&of_network(&name), |network: &NetworkView| {
                show::networks(std::slice::from_ref(network))
            }),
            NetworkVerb::Set {
                name,
                new_name,
                mtu,
                vlan,
                ageing,
                uplink,
            } => {
                let patch = PatchNetwork {
                    name: new_name,
                    mtu,
                    ageing,
                    vlan: vlan.map(|vlan| vlan.0),
                    uplink,
                };
                self.done(
                    self.client
                        .send(Method::PATCH, &of_network(&name), &patch)?,
                    format!("network '{name}' changed"),
                )
            }
            NetworkVerb::Delete { name } => self.done(
                self.client.delete(&of_network(&name))?,
                format!("network '{name}' deleted"),
            ),
        }
    }

    fn port(&self, verb: PortVerb) -> anyhow::Result<()> {
        match verb {
            PortVerb::Add {
                network,
                port,
                vhost_user,
                tap,
                server,
                client,
                queues,
                policy,
                mtu,
                mac_quota,
            } => {
                let done = format!("port '{port}' added to network '{network}'");
                let request = CreatePort {
                    name: port,
                    vhost_user,
                    tap,
                    mode: match (server, client) {
                        (_, true) => Some(VhostUserMode::Client),
                        (true, false) => Some(VhostUserMode::Server),
                        (false, false) => None,
                    },
                    queues,
                    vlan: policy.vlan,
                    mac_guard: policy.mac_guard,
                    mac_quota,
                    mtu,
                    link: policy.link,
                };
                let path = format!("{}/ports", of_network(&network));
                self.done(self.client.send(Method::POST, &path, &request)?, done)
            }
            PortVerb::List { network } => {
                let path = network.map_or("/v1/ports".to_owned(), |name| {
                    format!("{}/ports", of_network(&name))
                });
                self.show(&path, |list: &PortList| show::ports(&list.ports))
            }
            PortVerb::Show { network, port } => self.show(&of_port(&network, &port), show::port),
            PortVerb::Set(set) => self.set_port(set),
            PortVerb::Remove { network, port } => {
                let done = format!("port '{port}' removed from network '{network}'");
                self.done(self.client.delete(&of_port(&network, &port))?, done)
            }
        }
    }

    fn set_port(&self, set: PortSet) -> anyhow::Result<()> {
        let PortSet {
            network,
            port,
            policy,
            mtu,
            mac_quota,
            connect,
            disconnect,
        } = set;
        let patch = PatchPort {
            vlan: policy.vlan,
            mac_guard: policy.mac_guard,
            mac_quota: mac_quota.map(|quota| quota.0),
            mtu: mtu.map(|mtu| mtu.0),
            link: policy.link,
            network: if disconnect {
                Some(None)
            } else {
                connect.map(Some)
            },
        };
        let answer = self
            .client
            .send(Method::PATCH, &of_port(&network, &port), &patch)?;
        self.done(answer, format!("port '{port}' changed"))
    }

    fn fdb(&self, verb: FdbVerb) -> anyhow::Result<()> {
        match verb {
            FdbVerb::Show { network } => self.show(&of_fdb(&network), show::fdb),
            FdbVerb::Add {
                network,
                mac,
                port,
                vlan,
            } => {
                let done = format!("{mac} pinned to port '{port}' of network '{network}'");
                let entry = AddFdbEntry { mac, port, vlan };
                self.done(
                    self.client.send(Method::POST, &of_fdb(&network), &entry)?,
                    done,
                )
            }
            FdbVerb::Delete { network, mac, vlan } => {
                let vlan = vlan.map_or(String::new(), |vlan| format!("?vlan={vlan}"));
                let path = format!("{}/{mac}{vlan}", of_fdb(&network));
                self.done(
                    self.client.delete(&path)?,
                    format!("{mac} forgotten in network '{network}'"),
                )
            }
            FdbVerb::Flush { network, port } => {
                let port = port.map_or(String::new(), |port| format!("?port={port}"));
                let path = format!("{}{port}", of_fdb(&network));
                self.done(
                    self.client.delete(&path)?,
                    format!("learned addresses of network '{network}' forgotten"),
                )
            }
        }
    }

    fn stats(&self, args: &StatsArgs) -> anyhow::Result<()> {
        let path = match (&args.network, &args.port) {
            (None, _) => "/v1/stats".to_owned(),
            (Some(network), None) => format!("/v1/stats?network={network}"),
            (Some(network), Some(port)) => format!("/v1/stats?network={network}&port={port}"),
        };
        if !args.watch {
            return self.show(&path, show::stats);
        }
        let clear = if std::io::stdout().is_terminal() {
            "\x1b[H\x1b[2J"
        } else {
            ""
        };
        let mut before: StatsView = self.client.get(&path)?.parse()?;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now: StatsView = self.client.get(&path)?.parse()?;
            print(format_args!("{clear}{}", show::rates(&before, &now)))?;
            before = now;
        }
    }

    pub(crate) fn show<T: DeserializeOwned>(
        &self,
        path: &str,
        render: impl Fn(&T) -> String,
    ) -> anyhow::Result<()> {
        let answer = self.client.get(path)?;
        if self.json {
            print(format_args!("{}\n", answer.json()?))
        } else {
            print(render(&answer.parse()?))
        }
    }

    pub(crate) fn done(&self, answer: Answer, what: String) -> anyhow::Result<()> {
        if self.json {
            print(format_args!("{}\n", answer.json()?))
        } else {
            print(format_args!("{what}\n"))
        }
    }
}

fn of_network(name: &NetworkName) -> String {
    format!("/v1/networks/{name}")
}

fn of_port(network: &NetworkName, port: &PortName) -> String {
    format!("{}/ports/{port}", of_network(network))
}

fn of_fdb(network: &NetworkName) -> String {
    format!("{}/fdb", of_network(network))
}

/// Prints to stdout. A reader that has gone away has seen enough.
pub(crate) fn print(text: impl Display) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}
