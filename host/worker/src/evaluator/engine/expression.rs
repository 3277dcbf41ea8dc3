//! The Nix expressions that engines are given. Start at [`worker`]; [`jobset`] is the same for a Nix that goes on past errors,
//! [`selection`] its twin for nix-eval-jobs.
//!
//! Results leave a plain Nix process as traces: one line on standard error for each, `trace: <nonce><tag> <JSON>`. The
//! nonce is random and known to this expression alone, which evaluated code cannot read (evaluation is pure), so that its
//! own traces cannot pass for results. Traces come out as evaluation proceeds, and what was said before an error stays
//! said: an attribute is never evaluated for its name, then for its derivation, then for its error.
//!
//! JSON is put together here and not by `builtins.toJSON`, which newer versions let fail for strings that are not UTF-8.

use std::fmt::Write as _;

use harmonia_nix::STORE_DIR;

use super::{ATTRS_MAX, Task};
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

/// A list of `ask path isNamed isSet`.
fn nix_tasks<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> String {
    let mut out = String::from("[\n");
    for task in tasks {
        out.push_str(&nix_task(task));
        out.push('\n');
    }
    out.push(']');
    out
}

fn nix_task(task: &Task) -> String {
    format!("(ask {} {} {})", nix_list(&task.path), task.is_named, task.is_set)
}

fn outputs(flake: &PinnedFlake) -> String {
    let path = if flake.is_wrapped { "outputs.target.outputs" } else { "outputs" };
    format!("(builtins.getFlake {}).{path}", nix_string(&flake.reference))
}

/// What all expressions share: JSON, what a value is, what its `meta` says.
/// `nonce` is an expression.
fn common(nonce: &str, flake: &PinnedFlake) -> String {
    let escaped = ['\\', '"'].into_iter().chain('\u{1}'..' ');
    let (plain, json): (Vec<String>, Vec<String>) = escaped
        .map(|character| {
            let code = u32::from(character);
            let json = if character < ' ' { format!("\\u{code:04x}") } else { format!("\\{character}") };
            (character.to_string(), json)
        })
        .unzip();
    format!(
        r#"  nonce = {nonce};
  outputs = {outputs};
  ask = path: isNamed: isSet: {{ inherit path isNamed isSet; }};
  quote = text:
    "\"" + builtins.replaceStrings {plain} {json} (builtins.unsafeDiscardStringContext text) + "\"";
  list = texts: "[" + builtins.concatStringsSep "," (map quote texts) + "]";
  succeeds = value: let found = builtins.tryEval value; in found.success && found.value;
  # A set with an attribute called "type" may be a set of checks one of which is called so: what cannot be evaluated there
  # is that attribute's error, unless the set looks like a derivation otherwise. Errors that nobody can catch show in
  # `careful`.
  isDerivation = careful: task: value:
    !task.isSet && value ? type && (
      if value ? drvPath then value.type == "derivation" else careful (succeeds (value.type == "derivation")));
  isLeftAlone = careful: task: value:
    !task.isNamed && !task.isSet && value ? recurseForDerivations
    && careful (succeeds (value.recurseForDerivations == false));
  limits = value:
    let
      meta = builtins.tryEval (let meta = value.meta or {{ }}; in if builtins.isAttrs meta then meta else {{ }});
      limit = name:
        let
          found = builtins.tryEval (
            let limit = meta.value.${{name}} or null; in if builtins.isInt limit && limit > 0 then limit else null);
        in if meta.success && found.success then found.value else null;
    in {{ timeout = limit "timeout"; maxSilent = limit "maxSilent"; }};
"#,
        outputs = outputs(flake),
        plain = nix_list(plain),
        json = nix_list(json),
    )
}

/// `get path`: the value of an attribute.
const GET: &str = "  get = builtins.foldl' (set: name: set.${name}) outputs;\n";

/// For plain Nix, how it tells something before it goes on. What comes next is no argument of it, or each error would have a
/// frame of it in its trace.
const SAY: &str = "  say = tag: text: builtins.trace (nonce + tag + \" \" + text);\n";

/// Evaluates tasks one after the other.
const ALL: &str = "  all = tasks: builtins.foldl' (_: task: each task) null tasks;\n";

/// Names below the prefixes. Each prefix and each wanted system set is forced to be a set, nothing below them. Markers: `b`
/// (begins), then one of `p` names (`{ names, systems, leftOut }`; the systems follow), `o` (to be evaluated as it is),
/// `m` (missing: `{ found, names }`).
pub(super) fn enumerator<'a>(
    nonce: &str,
    flake: &PinnedFlake,
    systems: Option<&[String]>,
    prefixes: impl IntoIterator<Item = &'a Task>,
) -> String {
    let wanted = systems.map_or("null".to_owned(), nix_list);
    format!(
        r#"let
{GET}{SAY}{ALL}{common}  wanted = {wanted};
  isSystem = name: builtins.match "(aarch64|arm|armv[5-7][a-z]*|avr|i[3-6]86|loongarch64|m68k|microblaze(el)?|mips[a-z0-9]*|powerpc[a-z0-9]*|riscv(32|64)|s390x?|sparc64|wasm(32|64)|x86_64)-(cygwin|darwin|freebsd|genode|ghcjs|linux|mmixware|netbsd|none|openbsd|redox|solaris|wasi|windows)" name != null;
  isWanted = name: wanted == null || builtins.elem name wanted;
  find = value: found: rest:
    if rest == [ ] then {{ there = true; inherit value; }}
    else if builtins.isAttrs value && builtins.hasAttr (builtins.head rest) value
    then find value.${{builtins.head rest}} (found ++ [ (builtins.head rest) ]) (builtins.tail rest)
    else {{ there = false; inherit found; names = if builtins.isAttrs value then builtins.attrNames value else [ ]; }};
  each = task: say "b" "0" (
    let found = find outputs [ ] task.path; in
    if !found.there then say "m" "{{\"found\":${{list found.found}},\"names\":${{list found.names}}}}" null
    else if !(builtins.isAttrs found.value) || found.value ? type then say "o" "0" null
    else let
      names = builtins.attrNames found.value;
      systemNames = if builtins.length task.path == 1 then builtins.filter isSystem names else [ ];
      others = builtins.filter (name: !(builtins.elem name systemNames)) names;
      wantedNames = builtins.filter isWanted systemNames;
      leftOut = builtins.filter (name: !(isWanted name)) systemNames;
    in say "p" "{{\"names\":${{list others}},\"systems\":${{list wantedNames}},\"leftOut\":${{list leftOut}}}}"
      (all (map (name: ask (task.path ++ [ name ]) false false) wantedNames)));
in builtins.seq outputs (all {prefixes})
"#,
        common = common(&nix_string(nonce), flake),
        prefixes = nix_tasks(prefixes),
    )
}

/// How an attribute is evaluated and what is told of it. Markers: `b` (begins: its id, or "0"), then one of `r` path
/// (derivation; `l` with its limits follows), `n` names (a set, whose members follow), `x` (a set that is to be left alone),
/// `d` (a set that is nested too deeply), `v` type (any other value). `t` and `u` are around something that is forced and no
/// part of what is wanted: an error between them says that the set is to be asked for as a set. `end`: what stands for an
/// attribute that was told; `members`: for a set of these `names`.
fn evaluate(depth_max: usize, end: &str, members: &str) -> String {
    format!(
        r#"    let value = get task.path; in
    if !(builtins.isAttrs value) then say "v" (quote (builtins.typeOf value)) {end}
    else if isDerivation careful task value then
      let drvPath = value.drvPath; in builtins.seq drvPath (say "r" (quote drvPath) (
        let found = limits value; in
        say "l" "{{\"timeout\":${{number found.timeout}},\"maxSilent\":${{number found.maxSilent}}}}" {end}))
    else if isLeftAlone careful task value then say "x" "0" {end}
    else if builtins.length task.path >= {depth_max} then say "d" "0" {end}
    else let names = builtins.attrNames value; in
      say "n" (list names) ({members}));
  careful = value: say "t" "0" (builtins.seq value (say "u" "0" value));
  number = limit: if limit == null then "null" else toString limit;
"#
    )
}

/// Evaluates the attributes one after the other, sets recursively.
pub(super) fn worker<'a>(
    nonce: &str,
    flake: &PinnedFlake,
    depth_max: usize,
    tasks: impl IntoIterator<Item = &'a Task>,
) -> String {
    format!(
        r#"let
{GET}  each = task: say "b" "0" (
{evaluate}{SAY}{ALL}{common}in builtins.seq outputs (all {tasks})
"#,
        evaluate = evaluate(depth_max, "null", "all (map (name: ask (task.path ++ [ name ]) false false) names)"),
        common = common(&nix_string(nonce), flake),
        tasks = nix_tasks(tasks),
    )
}

/// The output of [`jobset`] in which its attributes are: one that `nix flake check` looks into whatever the system.
pub(super) const JOBSET: &str = "hydraJobs";
/// The file beside it that says what is to be evaluated, see [`write_tasks`].
pub(super) const TASKS_FILE: &str = "tasks.json";

/// A flake of which `nix flake check` forces one attribute after the other, each by itself: sets of jobs without jobs, of
/// which each forces one attribute of `flake`. The order is that of Nix's symbols, so each begins with its id: its number
/// in [`TASKS_FILE`], behind that a dot and the number of each member. What is on the stack when an attribute fails stands in
/// the first lines: Nix 2.8 reads a file byte by byte as far as a place that it shows, for each frame of each error.
///
/// The nonce is the revision that the flake is said to have. It is in no file: Nix 2.26 lets evaluated code list and read what
/// it is evaluated with.
pub(super) fn jobset(flake: &PinnedFlake, depth_max: usize) -> String {
    format!(
        r#"{{ outputs = {{ self }}: let
{GET}  each = id: task: say "b" (quote id) (
{evaluate}  members = id: task: names: builtins.listToAttrs (builtins.genList (member id task names) (builtins.length names));
  member = id: task: names: index: {{
    name = toString index;
    value.job = each "${{id}}.${{toString index}}" (ask (task.path ++ [ (builtins.elemAt names index) ]) false false);
  }};
{SAY}{common}in {{
  {JOBSET} = builtins.seq outputs (
    builtins.mapAttrs (id: task: {{ job = each id task; }}) (builtins.fromJSON (builtins.readFile ./{TASKS_FILE})));
}}; }}
"#,
        evaluate = evaluate(depth_max, "{ }", "members id task names"),
        common = common("self.rev", flake),
    )
}

/// Tasks as [`jobset`] reads them, by their numbers.
pub(super) fn write_tasks<'a>(
    mut to: impl std::io::Write,
    tasks: impl IntoIterator<Item = &'a Task>,
) -> std::io::Result<()> {
    for (index, task) in tasks.into_iter().enumerate() {
        let fields = serde_json::json!({ "path": task.path, "isNamed": task.is_named, "isSet": task.is_set });
        write!(to, "{}\"{index}\":{fields}", if index == 0 { "{" } else { "," })?;
    }
    to.write_all(b"}")?;
    to.flush()
}

/// What stands before the index of each attribute that was asked for,
pub(super) const TASK_PREFIX: char = 't';
/// and before the names of members. nix-eval-jobs takes a name that is a number for an index of a list.
pub(super) const MEMBER_PREFIX: char = '_';
/// The member of a set under which it tells its names.
pub(super) const NAMES_MEMBER: &str = "!";
/// nix-eval-jobs puts paths together with dots and quotes and takes them apart again, which names that contain these do
/// not survive. The last one is undone last.
const ESCAPES: [(&str, &str); 3] = [("\"", "%22"), (".", "%2E"), ("%", "%25")];

/// The name of a member as its author wrote it.
pub(super) fn member_name(escaped: &str) -> String {
    let escaped = escaped.strip_prefix(MEMBER_PREFIX).unwrap_or(escaped).to_owned();
    ESCAPES.iter().fold(escaped, |name, (plain, escape)| name.replace(escape, plain))
}

/// For nix-eval-jobs, which knows derivations and sets of them only: each attribute under its index, and what is neither
/// as an error that says `<nonce><tag> <JSON>`, with the tags of [`worker`]. So each attribute gives a line at least, and
/// one that gives none was lost. A set tells its names under `!`, its members are `_` and their names (an empty name
/// would never end). Of a derivation nix-eval-jobs sees what counts here and no more: it would have outputs and names
/// that are right, and would call one that is a function. What is around something that is no part of what is wanted shows
/// in the trace of an error: `t 0`, and `l` with the derivation whose limits these are.
pub(super) fn selection(nonce: &str, flake: &PinnedFlake, depth_max: usize, tasks: &[Task]) -> String {
    let mut out = format!(
        r#"let
{GET}{common}  careful = builtins.addErrorContext (nonce + "t 0");
  say = tag: text: throw (nonce + tag + " " + text);
  escape = builtins.replaceStrings {plain} {escapes};
  derivation = value:
    let drvPath = value.drvPath; in
    if builtins.match "{STORE_DIR}/[0-9a-z]{{32}}-[-+._?=0-9a-zA-Z]+[.]drv" drvPath == null then say "r" (quote drvPath)
    else {{
      type = "derivation"; name = "x"; inherit drvPath; outPath = drvPath;
      meta = builtins.addErrorContext (nonce + "l " + quote drvPath) (
        let found = limits value; in builtins.seq found.timeout (builtins.seq found.maxSilent found));
    }};
  look = task: value:
    if !(builtins.isAttrs value) then say "v" (quote (builtins.typeOf value))
    else if isDerivation careful task value then derivation value
    else if isLeftAlone careful task value then say "x" "0"
    else if builtins.length task.path >= {depth_max} then say "d" "0"
    else let names = builtins.attrNames value; in
      builtins.listToAttrs (
        [ {{ name = "{NAMES_MEMBER}"; value = say "n" (list names); }} ]
        ++ (if builtins.length names > {ATTRS_MAX} then [ ] else map (name: {{
          name = "{MEMBER_PREFIX}" + escape name;
          value = look (ask (task.path ++ [ name ]) false false) value.${{name}};
        }}) names));
  at = task: look task (get task.path);
in {{
"#,
        common = common(&nix_string(nonce), flake),
        plain = nix_list(ESCAPES.map(|(plain, _)| plain)),
        escapes = nix_list(ESCAPES.map(|(_, escape)| escape)),
    );
    for (index, task) in tasks.iter().enumerate() {
        let _ = writeln!(out, "  \"{TASK_PREFIX}{index}\" = at {};", nix_task(task));
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
        let task = Task { path: vec!["a".to_owned(), "\"".to_owned()], is_named: true, is_set: false, has_died: false };
        assert_eq!(nix_tasks([&task]), "[\n(ask [ \"a\" \"\\\"\" ] true false)\n]");
    }

    #[test]
    fn escaped_names_come_back() {
        for name in ["", "a.b", "q\"uote", "%", "%22", "%2522", "100%2E", "_", "ünï"] {
            // As `replaceStrings` does it, in one pass.
            let escape = |character: char| {
                let text = character.to_string();
                let found = ESCAPES.iter().find(|(plain, _)| *plain == text);
                found.map_or(text.clone(), |(_, escape)| (*escape).to_owned())
            };
            let escaped: String = name.chars().map(escape).collect();
            assert!(!escaped.contains(['.', '"']), "{escaped}");
            assert_eq!(member_name(&format!("{MEMBER_PREFIX}{escaped}")), name);
        }
    }
}
