//! Errors of evaluations as Nix prints them: start at [`message_first`].
//!
//! Nix 2.8 prints the message first, then the trace from the inside out. From 2.20 on it prints `error:`, the trace from
//! the outside in, and the message last; wrapped errors nest that within a message. What is stored and shown has the
//! message first, whichever Nix evaluated.

/// Errors within errors that are unfolded; deeper ones stay as they are.
const NESTING_MAX: usize = 8;

/// The same error with its message first and its trace behind, from the inside out.
pub fn message_first(error: &str) -> String {
    let lines: Vec<&str> = error.trim().lines().map(str::trim_end).collect();
    unfold(&lines, NESTING_MAX).unwrap_or_else(|| error.trim().to_owned())
}

/// The line of an error that says what is wrong, such as `error: attribute 'x' missing`.
pub fn message_line(error: &str) -> String {
    let text = message_first(error);
    let says = |line: &&str| line.trim().strip_prefix("error:").is_some_and(|rest| !rest.trim().is_empty());
    let first = || text.lines().find(|line| !line.trim().is_empty());
    text.lines().find(says).or_else(first).unwrap_or_default().trim().to_owned()
}

/// `None`: the message is first already.
fn unfold(lines: &[&str], nesting_left: usize) -> Option<String> {
    let (head, rest) = lines.split_first()?;
    let head = head.trim().strip_suffix("error:").filter(|_| nesting_left > 0)?;
    let indentation = indentation(rest.iter().find(|line| !line.is_empty())?);
    let begins = |line: &str, with: &str| line.get(indentation..).is_some_and(|text| text.starts_with(with));
    // The first such line: a message of several lines may have another one in it.
    let Some(message_at) = rest.iter().position(|line| begins(line, "error:")) else {
        // A message on the next line, without any trace.
        let is_plain = head.is_empty() && !rest.iter().any(|line| line.trim_start().starts_with('…'));
        return is_plain.then(|| format!("error: {}", rest.join("\n").trim_start()));
    };
    let (trace, message) = rest.split_at(message_at);
    let message = unfold(message, nesting_left - 1).unwrap_or_else(|| message.join("\n"));
    let message = message.trim_start().strip_prefix("error:").unwrap_or_default().trim();
    let mut text = if head.is_empty() { format!("error: {message}") } else { format!("{head}{message}") };

    let mut frames: Vec<Vec<&str>> = Vec::new();
    for line in trace {
        if frames.is_empty() || begins(line, "…") || begins(line, "(") {
            frames.push(Vec::new());
        }
        frames.last_mut()?.push(line);
    }
    for frame in frames.iter().rev() {
        text.push_str("\n\n");
        text.push_str(frame.join("\n").trim_end());
    }
    Some(text)
}

fn indentation(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    // As recorded: Nix 2.8 with a trace, Nix 2.26 with one, an error in which another is folded (nix-eval-jobs 2.26), and
    // what has no trace at all.
    const OLD: &str = "error: attribute 'foo' missing

       at /nix/store/x-source/flake.nix:13:21:

           13|       missing = mk ({ }.foo);

       … while evaluating the attribute 'name'";
    const NEW: &str = "error:
       … while evaluating the attribute 'outer'
         at /nix/store/x-source/flake.nix:1:1:
            1| x

       … while calling the 'throw' builtin
         at /nix/store/x-source/flake.nix:4:28:
            3|     checks = 5;
            4|     checks2.x86_64-linux = throw \"the system throws\";
             |                            ^

       error: the system throws
       error: and goes on
       at /nix/store/x-source/lib.nix:7:1:";
    const FOLDED: &str = "error: derivation 'badname' does not have valid outputs: error:
              … while calling the 'getAttr' builtin
                at <nix/derivation-internal.nix>:50:17:
                  50|       outPath = builtins.getAttr outputName strict;
                    |                 ^

              (stack trace truncated; use '--show-trace' to show the full, detailed trace)

              error: invalid derivation name: name 'bad name!' contains illegal character ' '.";

    #[test]
    fn the_message_comes_first_whichever_nix_printed_it() {
        assert_eq!(message_first(OLD), OLD);
        assert_eq!(
            message_first(NEW),
            "error: the system throws
       error: and goes on
       at /nix/store/x-source/lib.nix:7:1:

       … while calling the 'throw' builtin
         at /nix/store/x-source/flake.nix:4:28:
            3|     checks = 5;
            4|     checks2.x86_64-linux = throw \"the system throws\";
             |                            ^

       … while evaluating the attribute 'outer'
         at /nix/store/x-source/flake.nix:1:1:
            1| x"
        );
        let folded = message_first(FOLDED);
        assert!(
            folded
                .starts_with("error: derivation 'badname' does not have valid outputs: invalid derivation name: name"),
            "{folded}"
        );
        assert!(folded.ends_with("|                 ^") && folded.contains("(stack trace truncated"), "{folded}");
        assert_eq!(message_first(&format!("{NEW}\n")), message_first(&message_first(NEW)), "once is enough");
    }

    #[test]
    fn the_line_that_says_what_is_wrong_is_found() {
        for (error, line) in [
            (OLD, "error: attribute 'foo' missing"),
            (NEW, "error: the system throws"),
            ("error: first\n       error: second", "error: first"),
            ("error:\n       … while user\n       error: ctx", "error: ctx"),
            ("error:\n  undefined variable 'y'", "error: undefined variable 'y'"),
            ("error: it ends in error:\n\n       at /x:1:1:", "error: it ends in error:"),
            ("the flake could not be evaluated:\nerror: boom", "error: boom"),
            ("\nthe process died\nlater", "the process died"),
            ("error:", "error:"),
            ("error:\n       … a trace that was cut", "error:"),
            ("", ""),
        ] {
            assert_eq!(message_line(error), line, "{error}");
        }
    }

    #[test]
    fn errors_within_errors_are_unfolded_and_no_text_is_too_deep() {
        let nested = (0..100).rev().fold("error: core".to_owned(), |inner, depth| {
            let indent = " ".repeat(depth % 3);
            format!("error: layer {depth}: error:\n{indent}… frame {depth}\n\n{indent}{inner}")
        });
        let text = message_first(&nested);
        assert!(text.starts_with("error: layer 0: "), "{text:.200}");
        assert!(text.contains("core"));
    }
}
