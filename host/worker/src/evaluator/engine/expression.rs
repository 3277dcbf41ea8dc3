//! The Nix expressions that plain Nix is given. Start at [`worker`].
//!
//! Results leave the process as traces: one line on standard error for each, `trace: <nonce><tag> <JSON>`. The nonce
//! is random and known to this expression alone, which evaluated code cannot read (evaluation is pure), so that its own
//! traces cannot pass for results. Traces come out as evaluation proceeds, and what was said before an error stays
//! said: an attribute is never evaluated for its name, then for its derivation, then for its error.

use crate::evaluator::source::PinnedFlake;

/// A string as Nix reads it.
fn nix_string(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for character in text.chars() {
        match character {
            '"' | '\\' | '$' => out.extend(['\\', character]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

fn nix_list<S: AsRef<str>>(texts: impl IntoIterator<Item = S>) -> String {
    let mut out = String::from("[ ");
    for text in texts {
        out.push_str(&nix_string(text.as_ref()));
        out.push(' ');
    }
    out.push(']');
    out
}

fn nix_paths(paths: impl IntoIterator<Item = impl AsRef<[String]>>) -> String {
    let mut out = String::from("[\n");
    for path in paths {
        out.push_str(&nix_list(path.as_ref()));
        out.push('\n');
    }
    out.push(']');
    out
}

fn outputs(flake: &PinnedFlake) -> String {
    let path = if flake.is_wrapped { "outputs.target.outputs" } else { "outputs" };
    format!("(builtins.getFlake {}).{path}", nix_string(&flake.reference))
}

fn head(nonce: &str, flake: &PinnedFlake) -> String {
    format!(
        r#"let
  nonce = {nonce};
  outputs = {outputs};
  emit = tag: value: next:
    builtins.trace (nonce + tag + " " + builtins.unsafeDiscardStringContext (builtins.toJSON value)) next;
  isDerivation = value: builtins.isAttrs value && (value.type or null) == "derivation";
"#,
        nonce = nix_string(nonce),
        outputs = outputs(flake),
    )
}

/// Names below the prefixes, each prefix and each wanted system set forced to be a set, nothing below them forced.
/// Emits one `e` marker: `{ outputs, prefixes = [ { kind, names, systems } ] }`.
pub(super) fn enumerator(
    nonce: &str,
    flake: &PinnedFlake,
    prefixes: &[Vec<String>],
    systems: Option<&[String]>,
) -> String {
    let wanted = systems.map_or("null".to_owned(), nix_list);
    format!(
        r#"{head}  wanted = {wanted};
  isSystem = name: builtins.match "(aarch64|arm|armv[5-7][a-z]*|avr|i[3-6]86|loongarch64|m68k|microblaze(el)?|mips[a-z0-9]*|powerpc[a-z0-9]*|riscv(32|64)|s390x?|sparc64|wasm(32|64)|x86_64)-(cygwin|darwin|freebsd|genode|ghcjs|linux|mmixware|netbsd|none|openbsd|redox|solaris|wasi|windows)" name != null;
  kindOf = value:
    if isDerivation value then "derivation" else if builtins.isAttrs value then "set" else builtins.typeOf value;
  find = path: builtins.foldl'
    (found: name: if found.there && builtins.isAttrs found.value && builtins.hasAttr name found.value
      then {{ there = true; value = found.value.${{name}}; }} else {{ there = false; value = null; }})
    {{ there = true; value = outputs; }} path;
  describe = path:
    let
      found = find path;
      names = builtins.attrNames found.value;
      kind = if found.there then kindOf found.value else "missing";
      systemNames = if builtins.length path == 1 then builtins.filter isSystem names else [ ];
      isWanted = name: wanted == null || builtins.elem name wanted;
      below = name:
        let value = found.value.${{name}}; kind = kindOf value;
        in {{ inherit name kind; names = if kind == "set" then builtins.attrNames value else [ ]; }};
    in
    if kind != "set" then {{ inherit kind; names = [ ]; systems = [ ]; leftOut = [ ]; }} else {{
      inherit kind;
      names = builtins.filter (name: !(builtins.elem name systemNames)) names;
      systems = map below (builtins.filter isWanted systemNames);
      leftOut = builtins.filter (name: !(isWanted name)) systemNames;
    }};
  answer = {{ outputs = builtins.attrNames outputs; prefixes = map describe {prefixes}; }};
in emit "e" answer null
"#,
        head = head(nonce, flake),
        prefixes = nix_paths(prefixes),
    )
}

/// Evaluates the attributes one after the other, sets recursively. Markers: `b` path (begins), then one of `r` line
/// (derivation), `n` names (a set, whose members follow), `s` reason (neither).
pub(super) fn worker<'a>(
    nonce: &str,
    flake: &PinnedFlake,
    depth_max: usize,
    attrs: impl IntoIterator<Item = &'a Vec<String>>,
) -> String {
    format!(
        r#"{head}  get = path: builtins.foldl' (set: name: set.${{name}}) outputs path;
  # Each by itself: what stands beside a limit, and cannot be evaluated, takes nothing away from it. Only what is used.
  meta = value:
    let
      tried = builtins.tryEval (let all = value.meta or {{ }}; in if builtins.isAttrs all then all else {{ }});
      all = if tried.success then tried.value else {{ }};
      # Not everything can be caught; then the error says where it came from.
      number = name: builtins.addErrorContext "while evaluating 'meta.${{name}}'" (
        let found = builtins.tryEval (let given = all.${{name}} or null; in if builtins.isInt given then given else null);
        in if found.success then found.value else null);
    in {{ timeout = number "timeout"; maxSilent = number "maxSilent"; }};
  describe = path: value: {{
    attr = builtins.concatStringsSep "." path;
    attrPath = path;
    inherit (value) drvPath;
    name = value.name or null;
    system = value.system or null;
    meta = meta value;
  }};
  each = path: emit "b" path (
    let value = get path; in
    if isDerivation value then
      let line = describe path value; in builtins.deepSeq line (emit "r" line null)
    else if builtins.isAttrs value then
      if builtins.length path >= {depth_max} then emit "s" "is nested too deeply" null
      else let names = builtins.attrNames value; in
        emit "n" names (all (map (name: path ++ [ name ]) names))
    else emit "s" "is ${{builtins.typeOf value}}, not a derivation" null);
  all = paths: builtins.foldl' (_: path: each path) null paths;
in all {attrs}
"#,
        head = head(nonce, flake),
        attrs = nix_paths(attrs),
    )
}

/// For nix-eval-jobs: a set of just these attributes, each under its index.
pub(super) fn selection(flake: &PinnedFlake, attrs: &[Vec<String>]) -> String {
    let mut out = format!("let outputs = {}; in {{\n", outputs(flake));
    for (index, path) in attrs.iter().enumerate() {
        out.push_str("  \"");
        out.push_str(&index.to_string());
        out.push_str("\" = outputs");
        for part in path {
            out.push('.');
            out.push_str(&nix_string(part));
        }
        out.push_str(";\n");
    }
    out.push('}');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_cannot_break_out() {
        assert_eq!(nix_string("a\"${x}\\\n\r"), r#""a\"\${x}\\\n\r""#);
        assert_eq!(nix_paths([vec!["a".to_owned(), "\"".to_owned()]]), "[\n[ \"a\" \"\\\"\" ]\n]");
    }
}
