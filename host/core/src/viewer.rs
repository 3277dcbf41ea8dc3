//! Who asks to see something.

/// What somebody may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Viewer {
    /// Anybody: sees what a public project reaches.
    Public,
    /// Somebody with a valid token, of the API or of a claim: sees everything.
    Token,
}

impl Viewer {
    /// Whether private projects exist for them.
    pub const fn sees_all(self) -> bool {
        matches!(self, Self::Token)
    }
}
