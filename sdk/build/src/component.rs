//! From a core module to a component, and what a component imports and exports.

use std::collections::BTreeMap;
use std::fmt;

use wit_component::{ComponentEncoder, DecodedWasm};

/// Interfaces of these packages are the contract; a plugin may import nothing else.
const OURS: &str = "harmonia:";
/// Magic, version and layer of a component's binary format.
const COMPONENT_HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
/// Every plugin exports it.
const DESCRIPTION: &str = "harmonia:plugin/description@";

/// Why a module or a file is no plugin.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    /// The file cannot be read.
    #[error("cannot read it")]
    Read(#[source] std::io::Error),
    /// The module does not fit the interfaces that it says it has.
    #[error("cannot make a component of the module")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The bytes are no component.
    #[error("cannot read the component")]
    Decode(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The bytes are a core module, a package of WIT, or something else altogether.
    #[error("it is no component")]
    NoComponent,
    /// It imports what no host will give it.
    #[error("it imports {}; a plugin may import nothing but harmonia:* (does a dependency want a clock, randomness, or wasm-bindgen?)", .0.join(", "))]
    Foreign(Vec<String>),
    /// It exports no description, so it is no plugin.
    #[error("it does not export {DESCRIPTION}: does the crate call `harmonia_plugin::export!`?")]
    NoDescription,
}

/// What a component shows to its host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Size of the file.
    pub size_bytes: usize,
    /// Names of imports (`harmonia:plugin/http@0.1.0`), sorted.
    pub imports: Vec<String>,
    /// Names of exports, sorted.
    pub exports: Vec<String>,
}

/// Turns a core module with `component-type` sections into a component. Interfaces that the module never calls are no
/// imports of the component.
pub fn encode(module: &[u8]) -> Result<Vec<u8>, ComponentError> {
    let mut encoder = ComponentEncoder::default();
    let encoded = encoder.validate(true).module(module).and_then(ComponentEncoder::encode);
    encoded.map_err(|error| ComponentError::Encode(error.into()))
}

impl Component {
    /// Reads a component's world.
    pub fn read(bytes: &[u8]) -> Result<Self, ComponentError> {
        // A core module that says which interfaces it has would be read as if it had them already.
        if !bytes.starts_with(COMPONENT_HEADER) {
            return Err(ComponentError::NoComponent);
        }
        match wit_component::decode(bytes).map_err(|error| ComponentError::Decode(error.into()))? {
            DecodedWasm::WitPackage(..) => Err(ComponentError::NoComponent),
            DecodedWasm::Component(resolve, world) => {
                let world = &resolve.worlds[world];
                let mut imports: Vec<String> = world.imports.keys().map(|key| resolve.name_world_key(key)).collect();
                let mut exports: Vec<String> = world.exports.keys().map(|key| resolve.name_world_key(key)).collect();
                imports.sort();
                exports.sort();
                Ok(Self { size_bytes: bytes.len(), imports, exports })
            }
        }
    }

    /// Whether it is a plugin: exports a description and imports nothing foreign.
    pub fn check(&self) -> Result<(), ComponentError> {
        let foreign: Vec<String> = self.imports.iter().filter(|name| !name.starts_with(OURS)).cloned().collect();
        if !foreign.is_empty() {
            return Err(ComponentError::Foreign(foreign));
        }
        let described = self.exports.iter().any(|name| name.starts_with(DESCRIPTION));
        described.then_some(()).ok_or(ComponentError::NoDescription)
    }
}

/// Size, and imports by package: `81 KiB, imports plugin{http,log}@0.1.0`.
impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut packages: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
        for name in &self.imports {
            let (path, version) = name.split_once('@').unwrap_or((name, ""));
            let (package, interface) = path.split_once('/').unwrap_or((path, ""));
            packages.entry((package.strip_prefix(OURS).unwrap_or(package), version)).or_default().push(interface);
        }
        write!(f, "{:>6} KiB, imports", self.size_bytes.div_ceil(1024))?;
        if packages.is_empty() {
            return f.write_str(" nothing");
        }
        for ((package, version), interfaces) in packages {
            write!(f, " {package}{{{}}}@{version}", interfaces.join(","))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(imports: &[&str], exports: &[&str]) -> Component {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Component { size_bytes: 2049, imports: owned(imports), exports: owned(exports) }
    }

    #[test]
    fn foreign_imports_are_named() {
        let foreign = component(&["harmonia:plugin/log@0.1.0", "wasi:cli/environment@0.2.0", "__wbindgen"], &[]);
        let error = foreign.check().expect_err("it imports WASI");
        assert!(error.to_string().starts_with("it imports wasi:cli/environment@0.2.0, __wbindgen;"), "{error}");
    }

    #[test]
    fn a_plugin_describes_itself() {
        assert!(matches!(component(&[], &[]).check(), Err(ComponentError::NoDescription)));
        assert!(component(&[], &["harmonia:plugin/description@0.1.0"]).check().is_ok());
    }

    #[test]
    fn it_is_shown_in_a_line() {
        let shown =
            component(&["harmonia:forge/types@0.1.0", "harmonia:plugin/http@0.1.0", "harmonia:plugin/log@0.1.0"], &[]);
        assert_eq!(shown.to_string(), "     3 KiB, imports forge{types}@0.1.0 plugin{http,log}@0.1.0");
        assert_eq!(component(&[], &[]).to_string(), "     3 KiB, imports nothing");
    }

    #[test]
    fn what_is_no_module_is_refused() {
        assert!(matches!(encode(b"no wasm"), Err(ComponentError::Encode(_))));
        assert!(matches!(Component::read(b"\0asm\x01\0\0\0"), Err(ComponentError::NoComponent)));
        assert!(matches!(Component::read(b"\0asm\x0d\0\x01\0\x7f"), Err(ComponentError::Decode(_))));
    }
}
