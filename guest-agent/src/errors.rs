//! The agent's one error type: a kind, which becomes the ttrpc status code, and a sentence for people.
//!
//! ```text
//! AgentError
//! ├─ NotFound, AlreadyExists, FailedPrecondition, InvalidArgument   the host asked for what cannot be
//! ├─ DeadlineExceeded                                               a bounded wait of the agent ran out
//! └─ Internal                                                       the guest failed
//! ```
//! Messages name the object and its value; the cause is appended by [`Context`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose fault an error is; maps one to one to a ttrpc status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    NotFound,
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    DeadlineExceeded,
    Internal,
}

/// An error on its way to the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentError {
    pub kind: ErrorKind,
    pub message: String,
}

pub type Result<T> = std::result::Result<T, AgentError>;

impl AgentError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::AlreadyExists, message)
    }

    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::FailedPrecondition, message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }
}

impl fmt::Display for AgentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for AgentError {}

impl From<AgentError> for ttrpc::Error {
    fn from(error: AgentError) -> Self {
        let code = match error.kind {
            ErrorKind::NotFound => ttrpc::Code::NOT_FOUND,
            ErrorKind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
            ErrorKind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
            ErrorKind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
            ErrorKind::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
            ErrorKind::Internal => ttrpc::Code::INTERNAL,
        };
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, error.message))
    }
}

/// Turns a failure of the guest itself into an [`AgentError`] that says what was being done.
pub trait Context<T> {
    fn context(self, what: &str) -> Result<T>;
    fn with_context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, what: &str) -> Result<T> {
        self.map_err(|error| AgentError::internal(format!("{what}: {error}")))
    }

    fn with_context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| AgentError::internal(format!("{}: {error}", what())))
    }
}
