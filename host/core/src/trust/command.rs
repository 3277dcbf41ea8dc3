//! `/ci run` in a comment: a line of its own, as people see it rendered, so neither quoted nor shown as code nor hidden.

/// Longer comments are read up to here, in bytes.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// What a comment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `/ci run`, or `/ci run SHA` with a full hash in lower case.
    Run {
        /// The head that is meant.
        commit: Option<String>,
    },
    /// Begins like a command and is none: a shortened hash (anybody can make a commit with the same first digits), more
    /// words, or two commands that contradict each other.
    Unclear,
}

/// The command in a comment, if there is one.
pub fn parse_command(body: &str) -> Option<Command> {
    let body = &body[..body.floor_char_boundary(BODY_BYTES_MAX)];
    let mut reader = Reader { fence: None, in_hidden: false };
    let mut found: Option<Command> = None;
    for line in body.lines() {
        let Some(command) = reader.shown(line).and_then(command) else { continue };
        match &found {
            None => found = Some(command),
            Some(first) if *first == command => {}
            Some(_) => return Some(Command::Unclear),
        }
    }
    found
}

/// The command that a line is.
fn command(line: &str) -> Option<Command> {
    let mut words = line.split_whitespace();
    if (words.next(), words.next()) != (Some("/ci"), Some("run")) {
        return None;
    }
    Some(match (words.next(), words.next()) {
        (None, _) => Command::Run { commit: None },
        (Some(hash), None) if is_full_hash(hash) => Command::Run { commit: Some(hash.to_ascii_lowercase()) },
        _ => Command::Unclear,
    })
}

/// Whether a text is a whole SHA-1 or SHA-256 in hex.
pub fn is_full_hash(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Where in a Markdown text we are.
struct Reader {
    /// Character and length of the fence that is open.
    fence: Option<(u8, usize)>,
    /// Between `<!--` and `-->`.
    in_hidden: bool,
}

impl Reader {
    /// The line, when it is ordinary text.
    fn shown<'a>(&mut self, line: &'a str) -> Option<&'a str> {
        let text = line.trim_start_matches(' ');
        let indent = line.len() - text.len();
        if self.in_hidden {
            self.in_hidden = !text.contains("-->");
            return None;
        }
        if let Some((character, length)) = self.fence {
            let run = run_of(text, character);
            if indent < 4 && run >= length && text[run..].trim().is_empty() {
                self.fence = None;
            }
            return None;
        }
        if indent >= 4 || text.starts_with('\t') || text.starts_with('>') {
            return None;
        }
        for character in *b"`~" {
            let run = run_of(text, character);
            // Backticks further on make it inline code, which ends on this line.
            if run >= 3 && (character == b'~' || !text[run..].contains('`')) {
                self.fence = Some((character, run));
                return None;
            }
        }
        if let Some(at) = text.rfind("<!--") {
            self.in_hidden = !text[at..].contains("-->");
            return None;
        }
        Some(text)
    }
}

/// How often a character stands at the beginning.
fn run_of(text: &str, character: u8) -> usize {
    text.bytes().take_while(|byte| *byte == character).count()
}
