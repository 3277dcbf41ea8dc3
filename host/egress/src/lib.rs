//! Which addresses what we do not trust may reach, and the proxy that holds it to them.
//!
//! Start reading at [`address::AddressClass`], the one rule that plugins, engines and git are all held to; [`HostGrant`] and
//! [`EgressGrant`] are how an operator allows more, and [`Egress`] is the proxy: it resolves names itself, judges every
//! address, and connects to the addresses that it judged, so that a name cannot mean one thing when it is judged and
//! another when it is called.
//!
//! Never here: every other crate of ours. What may be evaluated, built or called by whom is decided elsewhere.

pub mod address;
mod grant;
mod proxy;
mod resolver;
mod rules;

pub use address::{AddressClass, AddressPolicy, AddressRefused};
pub use grant::{HostGrant, HostGrantError, HostParts, HostPattern, PRIVATE, Scheme, Target, find_grant};
pub use proxy::{Egress, EgressLimits, Session, TargetError};
pub use resolver::{Resolver, ResolverFuture, SystemResolver};
pub use rules::{EgressGrant, EgressRules, Refusal};
