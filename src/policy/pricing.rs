//! What a call costs, and what it can cost at most. Integer arithmetic, rounded up once.

/// One model's rates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Price {}

/// All known prices.
#[derive(Debug, Default)]
pub struct Catalog {}
