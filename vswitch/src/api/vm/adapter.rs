//! Adapters of VMs: their names, and requests about them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::values::VmName;
use crate::api::error::{Refusal, present};
use crate::api::policy::StationMac;
use crate::api::values::{InvalidValue, NetworkName, VlanId, as_text, words};

/// Legacy adapters of a VM, at most.
pub const MAX_LEGACY: usize = 4;
/// Synthetic adapters of a VM, at most.
pub const MAX_SYNTHETIC: usize = 8;

as_text!(AdapterName);

/// The name of an adapter: `legacy0` to `legacy3`, `synthetic0` to `synthetic7`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(try_from = "String", into = "String")]
#[schema(value_type = String, example = "legacy0")]
pub struct AdapterName(
    /// Legacy ones come first.
    u8,
);

impl AdapterName {
    /// All there are, legacy ones first.
    pub fn all() -> impl Iterator<Item = AdapterName> {
        (0..(MAX_LEGACY + MAX_SYNTHETIC) as u8).map(AdapterName)
    }

    /// All of a kind.
    pub fn of(kind: AdapterKind) -> impl Iterator<Item = AdapterName> {
        AdapterName::all().filter(move |name| name.kind() == kind)
    }

    /// The kind of the adapter.
    pub fn kind(self) -> AdapterKind {
        if usize::from(self.0) < MAX_LEGACY {
            AdapterKind::Legacy
        } else {
            AdapterKind::Synthetic
        }
    }

    /// The number at its end.
    pub fn index(self) -> u8 {
        match self.kind() {
            AdapterKind::Legacy => self.0,
            AdapterKind::Synthetic => self.0 - MAX_LEGACY as u8,
        }
    }
}

impl FromStr for AdapterName {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<AdapterName, InvalidValue> {
        AdapterName::all()
            .find(|name| name.to_string() == text)
            .ok_or_else(|| {
                let allowed = "legacy0 to legacy3, synthetic0 to synthetic7";
                InvalidValue::new("adapter name", text, allowed)
            })
    }
}

impl fmt::Display for AdapterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}{}", self.kind(), self.index()))
    }
}

/// The kind of an adapter.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AdapterKind {
    /// An emulated DEC 21140.
    Legacy,
    /// NetVSP over VMBus, for guests with Hyper-V's network driver.
    Synthetic,
}

impl AdapterKind {
    /// Adapters of this kind in a VM, at most.
    pub fn most(self) -> usize {
        match self {
            AdapterKind::Legacy => MAX_LEGACY,
            AdapterKind::Synthetic => MAX_SYNTHETIC,
        }
    }
}

words! {
    AdapterKind, "kind of adapter",
    Legacy => "legacy", Synthetic => "synthetic"
}

/// Asks for a new adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateAdapter {
    /// Its kind; that of its name unless given, or `legacy`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<AdapterKind>,
    /// Its name; the first that is free unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<AdapterName>,
    /// The network it is connected to; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    /// Its address; one of the host's pool unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<StationMac>,
    /// Its VLAN; none unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
}

impl CreateAdapter {
    /// The kind of the new adapter: the one asked for, or that of its name, or a legacy one.
    ///
    /// # Errors
    /// The two do not agree.
    pub fn kind(&self, vm: &VmName) -> Result<AdapterKind, Refusal> {
        match (self.kind, self.name.map(AdapterName::kind)) {
            (Some(kind), Some(other)) if kind != other => Err(Refusal::invalid(format!(
                "VM '{vm}': a {kind} adapter with the name of a {other} one; allowed: {kind}0 to {kind}{}",
                kind.most() - 1
            ))),
            (kind, other) => Ok(kind.or(other).unwrap_or(AdapterKind::Legacy)),
        }
    }

    /// The name of the new adapter in a VM whose adapters are `taken`: the one asked for, or the first of its kind that is
    /// free.
    ///
    /// # Errors
    /// It is of another kind, it is taken, or all are.
    pub fn choose_name(&self, vm: &VmName, taken: &[AdapterName]) -> Result<AdapterName, Refusal> {
        let kind = self.kind(vm)?;
        match self.name {
            Some(name) if taken.contains(&name) => Err(Refusal::conflict(format!(
                "VM '{vm}' has an adapter '{name}' already; names are unique in a VM"
            ))),
            Some(name) => Ok(name),
            None => AdapterName::of(kind)
                .find(|name| !taken.contains(name))
                .ok_or_else(|| {
                    let most = kind.most();
                    Refusal::conflict(format!(
                        "VM '{vm}' has {most} {kind} adapters already; allowed: at most {most}"
                    ))
                }),
        }
    }
}

/// Asks for changes to an adapter. Absent keys change nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchAdapter {
    /// The network it is to be connected to; `null` disconnects it. The guest sees its link change.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<NetworkName>)]
    pub network: Option<Option<NetworkName>>,
    /// Its address, while the VM is off; `null` takes a new one from the host's pool.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<StationMac>)]
    pub mac: Option<Option<StationMac>>,
    /// Its VLAN; `null` for none.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    #[schema(value_type = Option<VlanId>)]
    pub vlan: Option<Option<VlanId>>,
}

impl PatchAdapter {
    /// Checks that something is to be changed.
    pub fn check(&self, vm: &VmName, adapter: AdapterName) -> Result<(), Refusal> {
        if self.network.is_none() && self.mac.is_none() && self.vlan.is_none() {
            return Err(Refusal::invalid(format!(
                "adapter '{adapter}' of VM '{vm}': nothing to change; allowed: network, mac, vlan"
            )));
        }
        Ok(())
    }
}
