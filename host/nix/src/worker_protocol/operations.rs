//! The operations of the protocol: their codes, and the protocol version that first had them.

use super::wire::WireError;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $code:literal since $minor:literal;)+) => {
        /// What a client can ask a daemon to do.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Operation {
            $($(#[$doc])* $name,)+
        }

        impl Operation {
            /// All of them, by code.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The number that stands for the operation.
            pub const fn code(self) -> u64 {
                match self { $(Self::$name => $code,)+ }
            }

            /// The name that Nix gives it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// The minor protocol version that is needed for the form of the operation which this crate speaks.
            pub const fn since_minor(self) -> u8 {
                match self { $(Self::$name => $minor,)+ }
            }
        }
    };
}

operations! {
    /// Whether a path is valid.
    IsValidPath = 1 since 21;
    /// Who refers to a path.
    QueryReferrers = 6 since 21;
    /// Adds a content-addressed path; framed since 1.25.
    AddToStore = 7 since 25;
    /// Adds a text; replaced by [`Operation::AddToStore`].
    AddTextToStore = 8 since 21;
    /// Builds and substitutes.
    BuildPaths = 9 since 21;
    /// Makes a path valid by substituting it.
    EnsurePath = 10 since 21;
    /// Protects a path while the connection lasts.
    AddTempRoot = 11 since 21;
    /// Registers a symlink outside the store as a root.
    AddIndirectRoot = 12 since 21;
    /// Waits for the garbage collector.
    SyncWithGC = 13 since 21;
    /// All roots of the garbage collector.
    FindRoots = 14 since 21;
    /// Who made a path.
    QueryDeriver = 18 since 21;
    /// Settings of this client.
    SetOptions = 19 since 21;
    /// Collects garbage.
    CollectGarbage = 20 since 21;
    /// Output paths of a derivation.
    QueryDerivationOutputs = 22 since 21;
    /// Every valid path.
    QueryAllValidPaths = 23 since 21;
    /// What the store knows of a path.
    QueryPathInfo = 26 since 21;
    /// Output names of a derivation.
    QueryDerivationOutputNames = 28 since 21;
    /// The path that has a hash part.
    QueryPathFromHashPart = 29 since 21;
    /// What substituters know of paths.
    QuerySubstitutablePathInfos = 30 since 21;
    /// Which of some paths are valid.
    QueryValidPaths = 31 since 21;
    /// Which of some paths can be substituted.
    QuerySubstitutablePaths = 32 since 21;
    /// Valid derivations that have a path as an output.
    QueryValidDerivers = 33 since 21;
    /// Makes files that are equal share their blocks.
    OptimiseStore = 34 since 21;
    /// Checks the store against its database.
    VerifyStore = 35 since 21;
    /// Builds one derivation that need not be in the store.
    BuildDerivation = 36 since 21;
    /// Adds signatures to a path.
    AddSignatures = 37 since 21;
    /// The archive of a path.
    NarFromPath = 38 since 21;
    /// Adds a path with what is known of it.
    AddToStoreNar = 39 since 21;
    /// What a build would do.
    QueryMissing = 40 since 21;
    /// Output names and paths of a derivation.
    QueryDerivationOutputMap = 41 since 22;
    /// Registers a realisation.
    RegisterDrvOutput = 42 since 31;
    /// Asks for a realisation.
    QueryRealisation = 43 since 31;
    /// Adds many paths in one go.
    AddMultipleToStore = 44 since 32;
    /// Stores the log of a build.
    AddBuildLog = 45 since 32;
    /// Builds, with a result for each path.
    BuildPathsWithResults = 46 since 34;
    /// Makes a root, by the daemon.
    AddPermRoot = 47 since 36;
}

impl TryFrom<u64> for Operation {
    type Error = WireError;

    fn try_from(code: u64) -> Result<Self, WireError> {
        let found = Self::ALL.iter().find(|operation| operation.code() == code);
        found.copied().ok_or_else(|| WireError::bad_value("an operation code", code))
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name())
    }
}
