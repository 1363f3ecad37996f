//! The edge towards clients: what stands between a socket and the layers.

pub mod framing;
pub mod tls;
