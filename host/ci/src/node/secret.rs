//! What a node keeps for itself so that nobody else takes its name: a file in its state folder.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use harmonia_core::{NodeId, NodeSecret};

use crate::exit::Failure;

/// The secret of the node with this name; made when it has none.
pub(super) fn of_node(state_dir: &Path, node: &NodeId) -> Result<NodeSecret, Failure> {
    // Names hold whatever a host name or an operator likes.
    let name = node.0.bytes().fold(String::new(), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    });
    let path = state_dir.join(format!("node-secret-{}", &name[..name.len().min(128)]));
    let failed = |error: std::io::Error| {
        Failure::failed(format!("could not keep this node's secret in {}: {error}", path.display()))
            .hint("set node.state_dir to a folder this user may write")
    };
    match std::fs::read(&path) {
        Ok(bytes) => <[u8; 32]>::try_from(bytes).map(NodeSecret).map_err(|_| {
            Failure::failed(format!("{} does not hold a node's secret, which has 32 bytes", path.display()))
                .hint("restore it, or remove it and give the node another name")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let secret: [u8; 32] = rand::random();
            std::fs::create_dir_all(state_dir).map_err(failed)?;
            let mut file = tempfile::Builder::new().tempfile_in(state_dir).map_err(failed)?;
            file.write_all(&secret).map_err(failed)?;
            file.as_file().sync_all().map_err(failed)?;
            file.persist(&path).map_err(|error| failed(error.error))?;
            Ok(NodeSecret(secret))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_secret_and_shares_it_with_nobody() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().expect("temporary folder");
        let node = NodeId("a/../b é".to_owned());
        let first = of_node(folder.path(), &node).expect("made");
        assert_eq!(of_node(folder.path(), &node).expect("read"), first);
        assert_ne!(of_node(folder.path(), &NodeId("other".to_owned())).expect("made"), first);
        for entry in std::fs::read_dir(folder.path()).expect("listed") {
            let path = entry.expect("entry").path();
            assert_eq!(path.metadata().expect("metadata").permissions().mode() & 0o777, 0o600);
            std::fs::write(path, b"short").expect("damaged");
        }
        assert!(of_node(folder.path(), &node).is_err(), "a damaged secret is told, not replaced");
    }
}
