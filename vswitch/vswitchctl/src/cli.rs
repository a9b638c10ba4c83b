//! The command line: nouns, verbs and their arguments. Values are checked by the types of the API.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};
use vswitch::api::{
    Ageing, IfName, Link, MacGuard, MacQuota, Mtu, NetworkName, NetworkType, PortName, Queues,
    SocketPath, StationMac, VlanId, VlanSpec,
};

use crate::config::ConfigVerb;
use crate::vm_cli::{AdapterVerb, VmVerbs};

const EXAMPLES: &str = "\
Examples:
  vswitchctl network create lab --type private
  vswitchctl network create lan --type external --uplink eth1
  vswitchctl port add lab vm1 --vhost-user /run/vm1.sock --vlan access:10
  vswitchctl port set lab vm1 --mac-guard 02:00:5e:10:00:01
  vswitchctl stats lab --watch
  vswitchctl vm create web --memory 1G --legacy net=lab,vlan=10
  vswitchctl vm start web && vswitchctl vm console web

Exit status: 0 done, 1 refused or failed, 2 wrong usage.";

#[derive(Debug, Parser)]
#[command(name = "vswitchctl", version, about = "Drives vswitchd, the layer-2 switch", after_help = EXAMPLES)]
pub(crate) struct Cli {
    /// Where vswitchd makes its sockets
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "VSWITCH_RUN_DIR",
        default_value = "/run/vswitch"
    )]
    pub(crate) run_dir: PathBuf,
    /// Print one JSON value
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Workers, networks, ports and VMs at a glance
    Status,
    /// Networks
    #[command(subcommand)]
    Network(NetworkVerb),
    /// Ports
    #[command(subcommand)]
    Port(PortVerb),
    /// MAC tables
    #[command(subcommand)]
    Fdb(FdbVerb),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmVerbs),
    /// Network adapters of virtual machines
    #[command(subcommand)]
    Adapter(AdapterVerb),
    /// Frames, bytes and drops
    Stats(StatsArgs),
    /// The configuration as a document
    #[command(subcommand)]
    Config(ConfigVerb),
    /// Print the completion script of a shell
    Completion { shell: clap_complete::Shell },
}

#[derive(Debug, Subcommand)]
pub(crate) enum NetworkVerb {
    /// Make a network
    Create(NetworkCreate),
    /// List the networks
    List,
    /// Show a network
    Show { name: NetworkName },
    /// Change a network under traffic
    #[command(group = ArgGroup::new("change").required(true).multiple(true))]
    Set {
        name: NetworkName,
        /// Its new name; the host NIC keeps its own
        #[arg(long = "name", value_name = "NEW", group = "change")]
        new_name: Option<NetworkName>,
        /// MTU of host NIC, uplink, and ports without their own: 68 to 9000
        #[arg(long, value_name = "BYTES", group = "change")]
        mtu: Option<Mtu>,
        /// VLAN of the host NIC: 1 to 4094, or none
        #[arg(long, value_name = "ID|none", group = "change")]
        vlan: Option<OrNone<VlanId>>,
        /// Seconds until a silent station is forgotten: 1 to 1000000, or 0 for never
        #[arg(long, value_name = "SECONDS", group = "change")]
        ageing: Option<Ageing>,
        /// Another physical interface; the host NIC keeps its addresses, and gets those of the new uplink too
        #[arg(long, value_name = "IFNAME", group = "change")]
        uplink: Option<IfName>,
    },
    /// Delete a network without ports; its uplink gets its addresses back
    Delete { name: NetworkName },
}

#[derive(Debug, Args)]
pub(crate) struct NetworkCreate {
    /// 1 to 64 characters A-Z a-z 0-9 . _ -
    pub(crate) name: NetworkName,
    /// external (uplink and host NIC), internal (host NIC), private (neither)
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: NetworkType,
    /// The physical interface of an external network
    #[arg(long, value_name = "IFNAME")]
    pub(crate) uplink: Option<IfName>,
    /// The host NIC's name [default: vsw-NAME]
    #[arg(long, value_name = "IFNAME")]
    pub(crate) host_nic: Option<IfName>,
    /// The host takes no part in an external network
    #[arg(long)]
    pub(crate) no_host_nic: bool,
    /// The host NIC's VLAN: 1 to 4094
    #[arg(long, value_name = "ID")]
    pub(crate) vlan: Option<VlanId>,
    /// 68 to 9000 [default: 1500]
    #[arg(long, value_name = "BYTES")]
    pub(crate) mtu: Option<Mtu>,
    /// Seconds until a silent station is forgotten: 1 to 1000000, or 0 for never [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) ageing: Option<Ageing>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PortVerb {
    /// Make a port
    #[command(group = ArgGroup::new("backend").required(true))]
    Add {
        network: NetworkName,
        /// 1 to 64 characters A-Z a-z 0-9 . _ -
        port: PortName,
        /// The socket of a VMM that speaks vhost-user
        #[arg(long, value_name = "PATH", group = "backend")]
        vhost_user: Option<SocketPath>,
        /// A TAP device for a foreign program
        #[arg(long, value_name = "IFNAME", group = "backend")]
        tap: Option<IfName>,
        /// vswitchd makes the socket and listens (the default)
        #[arg(long, conflicts_with_all = ["client", "tap"])]
        server: bool,
        /// The VMM listens; vswitchd connects, again and again
        #[arg(long, conflicts_with = "tap")]
        client: bool,
        /// Pairs of queues offered: 1 to 16 [default: 1]
        #[arg(long, value_name = "N", conflicts_with = "tap")]
        queues: Option<Queues>,
        #[command(flatten)]
        policy: Policy,
        /// 68 to 9000 [default: that of the network]
        #[arg(long, value_name = "BYTES")]
        mtu: Option<Mtu>,
        /// Most addresses learned behind it: 1 to 1048576 [default: 131072]
        #[arg(long, value_name = "N")]
        mac_quota: Option<MacQuota>,
    },
    /// List the ports, of one network or of all
    List { network: Option<NetworkName> },
    /// Show a port
    Show {
        network: NetworkName,
        port: PortName,
    },
    /// Change a port under traffic
    Set(PortSet),
    /// Remove a port
    Remove {
        network: NetworkName,
        port: PortName,
    },
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true)
    .args(["vlan", "mac_guard", "mac_quota", "link", "mtu", "connect", "disconnect"]))]
pub(crate) struct PortSet {
    pub(crate) network: NetworkName,
    pub(crate) port: PortName,
    #[command(flatten)]
    pub(crate) policy: Policy,
    /// 68 to 9000, or none for that of the network
    #[arg(long, value_name = "BYTES|none")]
    pub(crate) mtu: Option<OrNone<Mtu>>,
    /// Most addresses learned behind it: 1 to 1048576, or none for what is usual
    #[arg(long, value_name = "N|none")]
    pub(crate) mac_quota: Option<OrNone<MacQuota>>,
    /// Connect it to its network, or move it to another
    #[arg(long, value_name = "NETWORK", conflicts_with = "disconnect")]
    pub(crate) connect: Option<NetworkName>,
    /// Disconnect it: its frames are dropped
    #[arg(long)]
    pub(crate) disconnect: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Policy {
    /// access:ID, trunk:LIST[,native=ID], or none; LIST as 10,20,30-40 or all
    #[arg(long, value_name = "VLAN")]
    pub(crate) vlan: Option<VlanSpec>,
    /// The addresses it may send from, as MAC[,MAC…], or off
    #[arg(long, value_name = "MACS|off")]
    pub(crate) mac_guard: Option<MacGuard>,
    /// up, or down: no frame passes
    #[arg(long, value_name = "up|down")]
    pub(crate) link: Option<Link>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FdbVerb {
    /// Show the MAC table of a network
    Show { network: NetworkName },
    /// Pin an address to a port
    Add {
        network: NetworkName,
        mac: StationMac,
        port: PortName,
        /// 1 to 4094; without it the entry is for frames of no VLAN
        #[arg(long, value_name = "ID")]
        vlan: Option<VlanId>,
    },
    /// Forget an address, static or learned
    Delete {
        network: NetworkName,
        mac: StationMac,
        /// 1 to 4094; without it the entry of no VLAN
        #[arg(long, value_name = "ID")]
        vlan: Option<VlanId>,
    },
    /// Forget all learned addresses; static ones stay
    Flush {
        network: NetworkName,
        /// Those of this port only
        #[arg(long, value_name = "PORT")]
        port: Option<PortName>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    pub(crate) network: Option<NetworkName>,
    pub(crate) port: Option<PortName>,
    /// Show them again every second, with rates, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
}

/// A value, or the word `none`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrNone<T>(pub(crate) Option<T>);

impl<T: std::str::FromStr> std::str::FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "none" => Ok(OrNone(None)),
            _ => text.parse().map(|value| OrNone(Some(value))),
        }
    }
}
