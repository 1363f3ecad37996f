//! Which variant of an experiment a unit belongs to: weighted rendezvous hashing, no state.

/// What is hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unit {
    /// The user, or the key when the call names none.
    User,
    /// The virtual key.
    Key,
    /// The session, else the user.
    Session,
    /// A request header by this lower-case name, else the user.
    Header(Box<str>),
}

/// An experiment on a model.
#[derive(Debug)]
pub struct Experiment {}
