//! Every "no" of the controller as a value: the condition's reason, its message, the event and the metric's label.
//!
//! Messages reach whoever may read the Service: they name pools and rules, never a Service of another namespace.

use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;

use crate::model::Family;
use crate::names::PoolName;

/// How many pools a message names.
const MOST_POOLS: usize = 32;

/// Why a Service does not get what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The Service has no cluster IP yet, so its families are not known.
    NoClusterIp,
    /// `RequireDualStack` with one cluster IP.
    OneClusterIp,
    /// By annotation and by `spec.loadBalancerIP`.
    AskedTwice,
    /// A requested address cannot be read.
    UnreadableAddress(String),
    /// A requested address is of a family that the Service has no cluster IP of.
    FamilyNotServed {
        /// The address.
        address: IpAddr,
        /// The families that it has.
        families: Vec<Family>,
    },
    /// Two addresses of one family are requested.
    TwoOfOneFamily(Family),
    /// There is no pool at all.
    NoPools,
    /// There is no pool of the requested name.
    UnknownPool(PoolName),
    /// No pool has the requested address.
    OutsidePools(IpAddr),
    /// The pool that has the requested address does not give it.
    Pool {
        /// The address.
        address: IpAddr,
        /// The pool.
        pool: PoolName,
        /// The rule.
        rule: PoolRule,
    },
    /// The requested address is not of the requested pool.
    OtherPool {
        /// The address.
        address: IpAddr,
        /// The pool that was asked for.
        requested: PoolName,
    },
    /// The requested address is held by another Service.
    InUse(IpAddr),
    /// The requested address was released a short while ago and rests.
    Resting {
        /// The address.
        address: IpAddr,
        /// Until when.
        until: Timestamp,
    },
    /// Somebody outside the cluster answers for the requested address.
    Quarantined(IpAddr),
    /// No pool gives an address of a family.
    NoPoolFits {
        /// The family.
        family: Family,
        /// Every pool, with the rule that rejected it.
        pools: Vec<(PoolName, PoolRule)>,
    },
}

/// The rule by which a pool rejected a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolRule {
    /// The pool is not in use.
    NotReady(&'static str),
    /// `autoAssign` is false and the Service does not ask for the pool.
    OnRequest,
    /// Another pool is asked for.
    NotRequested,
    /// `serviceAllocation` does not admit the namespace.
    Namespace,
    /// `serviceAllocation` does not admit the Service's labels.
    Labels,
    /// The pool has no address of the family.
    NoFamily,
    /// All addresses of the family are held, resting, reserved or excluded.
    Exhausted,
    /// The address is excluded.
    Excluded,
    /// The address is kept for another Service.
    Reserved,
}

impl Refusal {
    /// The condition's and the event's reason.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoClusterIp => "NoClusterIP",
            Self::OneClusterIp => "NotEnoughClusterIPs",
            Self::AskedTwice
            | Self::UnreadableAddress(_)
            | Self::FamilyNotServed { .. }
            | Self::TwoOfOneFamily(_)
            | Self::OtherPool { .. } => "InvalidRequest",
            Self::NoPools => "NoPools",
            Self::UnknownPool(_) => "UnknownPool",
            Self::OutsidePools(_) => "AddressOutsidePools",
            Self::Pool { .. } => "AddressNotAllowed",
            Self::InUse(_) => "AddressInUse",
            Self::Resting { .. } => "AddressResting",
            Self::Quarantined(_) => "AddressQuarantined",
            Self::NoPoolFits { pools, .. } if pools.iter().any(|(_, rule)| *rule == PoolRule::Exhausted) => {
                "PoolsExhausted"
            }
            Self::NoPoolFits { .. } => "NoPoolFits",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoClusterIp => f.write_str("the Service has no cluster IP yet"),
            Self::OneClusterIp => f.write_str("ipFamilyPolicy is RequireDualStack but the Service has one cluster IP"),
            Self::AskedTwice => {
                f.write_str("addresses are requested both by annotation and by spec.loadBalancerIP; give one of them")
            }
            Self::UnreadableAddress(text) => write!(f, "the requested address {text:?} is no IP address"),
            Self::FamilyNotServed { address, families } => {
                write!(f, "the requested address {address} is {}, the Service is ", Family::of(*address))?;
                list(f, families.iter())
            }
            Self::TwoOfOneFamily(family) => write!(f, "two {family} addresses are requested; one of a family is given"),
            Self::NoPools => f.write_str("there is no IPAddressPool"),
            Self::UnknownPool(pool) => write!(f, "there is no IPAddressPool {pool}"),
            Self::OutsidePools(address) => write!(f, "the requested address {address} is in no pool"),
            Self::Pool { address, pool, rule } => {
                write!(f, "the requested address {address} is not given: pool {pool} {rule}")
            }
            Self::OtherPool { address, requested } => {
                write!(f, "the requested address {address} is not in the requested pool {requested}")
            }
            Self::InUse(address) => write!(f, "the requested address {address} is held by another Service"),
            Self::Resting { address, until } => {
                write!(f, "the requested address {address} was released by another Service and rests until {until:.0}")
            }
            Self::Quarantined(address) => {
                write!(f, "somebody outside the cluster answers for the requested address {address}")
            }
            Self::NoPoolFits { family, pools } => {
                write!(f, "no pool gives an {family} address: ")?;
                for (position, (pool, rule)) in pools.iter().take(MOST_POOLS).enumerate() {
                    write!(f, "{}pool {pool} {rule}", if position == 0 { "" } else { "; " })?;
                }
                match pools.len().checked_sub(MOST_POOLS) {
                    Some(more @ 1..) => write!(f, "; and {more} more"),
                    Some(0) | None => Ok(()),
                }
            }
        }
    }
}

impl fmt::Display for PoolRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(reason) => write!(f, "is not in use ({reason})"),
            Self::OnRequest => f.write_str("assigns only on request (autoAssign is false)"),
            Self::NotRequested => f.write_str("is not the requested one"),
            Self::Namespace => f.write_str("does not admit the namespace"),
            Self::Labels => f.write_str("does not admit the Service's labels"),
            Self::NoFamily => f.write_str("has no addresses of this family"),
            Self::Exhausted => f.write_str("has no free address"),
            Self::Excluded => f.write_str("excludes it"),
            Self::Reserved => f.write_str("keeps it for another Service"),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, families: impl Iterator<Item = impl fmt::Display>) -> fmt::Result {
    for (position, family) in families.enumerate() {
        write!(f, "{}{family}", if position == 0 { "" } else { " and " })?;
    }
    Ok(())
}
