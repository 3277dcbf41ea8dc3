//! Git repositories with flakes, made for a test.

use std::path::Path;
use std::process::Command;

/// Writes files and commits everything. Makes the repository when there is none.
///
/// # Panics
/// When git refuses.
pub fn commit(folder: &Path, files: &[(&str, &str)]) {
    if !folder.join(".git").exists() {
        std::fs::create_dir_all(folder).expect("made");
        git(folder, &["init", "--quiet", "--initial-branch", "main"]);
    }
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, content).expect("written");
    }
    git(folder, &["add", "--all"]);
    git(
        folder,
        &[
            "-c",
            "user.name=Test",
            "-c",
            "user.email=test@example.org",
            "commit",
            "--quiet",
            "--allow-empty",
            "-m",
            "a commit",
        ],
    );
}

/// Runs git.
///
/// # Panics
/// When it fails.
pub fn git(folder: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git starts");
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A flake whose `checks` are the derivations of the Nix expression `body`, an attribute set; `sh NAME SCRIPT INPUTS`
/// makes a derivation there.
pub fn flake(body: &str) -> String {
    let system = format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS);
    format!(
        r#"{{
  outputs = {{ self }}: let
    system = "{system}";
    sh = name: script: inputs: derivation (inputs // {{ inherit name system; builder = "/bin/sh"; args = [ "-c" script ]; }});
  in {{ checks.{system} = {body}; }};
}}
"#
    )
}
