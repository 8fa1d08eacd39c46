//! One error for the whole program: its kind decides the exit code, its text tells the next action.
//!
//! The table of exit codes below is the only one; `k8s/README.md` repeats it for the person on call and the CronJobs'
//! `podFailurePolicy` is tested against it.

use std::fmt;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as the person on call must tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A flag, a job spec or a SQL file is wrong. Exit 2.
    Usage,
    /// Storage or a cluster did not answer: run again. Exit 10.
    Transient,
    /// An input of the date has not arrived yet: run again later. Exit 20.
    InputMissing,
    /// An input breaks its contract or a check. Exit 30.
    Contract,
    /// The suppression list is missing or stale, or a privacy floor is broken. Exit 40.
    Privacy,
    /// A bug of ours. Exit 50.
    Internal,
    /// Another run committed first. Exit 60.
    LostRace,
}

impl Kind {
    /// The process's exit status for this kind.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Usage => 2,
            Kind::Transient => 10,
            Kind::InputMissing => 20,
            Kind::Contract => 30,
            Kind::Privacy => 40,
            Kind::Internal => 50,
            Kind::LostRace => 60,
        }
    }
}

/// An error with its kind, what was being done (outermost first), and what to do next.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    pub kind: Kind,
    message: String,
    /// What was being done when it happened, innermost first.
    context: Vec<String>,
    /// The next action, as one imperative sentence.
    action: Option<String>,
}

impl Error {
    pub fn new(kind: Kind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string(), context: Vec::new(), action: None }
    }

    pub fn usage(message: impl fmt::Display) -> Self {
        Self::new(Kind::Usage, message)
    }

    pub fn contract(message: impl fmt::Display) -> Self {
        Self::new(Kind::Contract, message)
    }

    pub fn privacy(message: impl fmt::Display) -> Self {
        Self::new(Kind::Privacy, message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Kind::Internal, message)
    }

    /// Says what to do next; the innermost (most specific) action wins.
    pub fn action(mut self, action: impl fmt::Display) -> Self {
        self.action.get_or_insert_with(|| action.to_string());
        self
    }

    /// Says what was being done: `reading features user__activity for 2026-11-22`.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.context.push(doing.to_string());
        self
    }

    /// The next action: the one given, else the usual one of the kind.
    pub fn next_action(&self) -> &str {
        self.action.as_deref().unwrap_or(match self.kind {
            Kind::Usage => "correct the command, the spec or the SQL and run again",
            Kind::Transient => "run again; the night resumes where it stopped",
            Kind::InputMissing => "wait for the input and run again",
            Kind::Contract => "mend the input or its contract in sources.toml and run again",
            Kind::Privacy => "deliver a fresh suppression list and run again; yesterday's table stays",
            Kind::Internal => "report this with the log; yesterday's table stays",
            Kind::LostRace => "look at `nightmarket history`: another run has published",
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for doing in self.context.iter().rev() {
            write!(f, "{doing}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// Adds what was being done to a failing result.
pub trait Context<T> {
    fn context(self, doing: impl fmt::Display) -> Result<T>;
    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(doing))
    }

    fn with_context<D: fmt::Display>(self, doing: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(doing()))
    }
}

impl From<object_store::Error> for Error {
    fn from(error: object_store::Error) -> Self {
        use object_store::Error as E;
        let kind = match &error {
            E::NotFound { .. } => Kind::InputMissing,
            E::InvalidPath { .. } | E::NotSupported { .. } | E::NotImplemented { .. } | E::UnknownConfigurationKey { .. } => Kind::Usage,
            _ => Kind::Transient,
        };
        Error::new(kind, error)
    }
}

impl From<datafusion::error::DataFusionError> for Error {
    fn from(error: datafusion::error::DataFusionError) -> Self {
        use datafusion::error::DataFusionError as E;
        let kind = match error.find_root() {
            E::SQL(..) | E::Plan(_) | E::SchemaError(..) | E::NotImplemented(_) | E::Configuration(_) => Kind::Usage,
            E::ArrowError(..) | E::ParquetError(_) | E::Execution(_) => Kind::Contract,
            E::ObjectStore(_) | E::IoError(_) => Kind::Transient,
            // The same data and settings would end the same way.
            E::ResourcesExhausted(message) => {
                let first = message.lines().next().unwrap_or_default();
                return Error::usage(format_args!("a query needs more memory than [engine] memory_mib gives it: {first}"))
                    .action("raise [engine] memory_mib, or its buckets for smaller pieces, and run again");
            }
            _ => Kind::Internal,
        };
        Error::new(kind, error.strip_backtrace())
    }
}

impl From<arrow::error::ArrowError> for Error {
    fn from(error: arrow::error::ArrowError) -> Self {
        Error::contract(error)
    }
}

impl From<parquet::errors::ParquetError> for Error {
    fn from(error: parquet::errors::ParquetError) -> Self {
        Error::contract(error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Error::new(Kind::Transient, error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Error::internal(format_args!("JSON: {error}"))
    }
}
