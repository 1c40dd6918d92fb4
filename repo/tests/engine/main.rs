//! The engine through its public face: what goes in comes out, from every point, whatever the
//! history.

mod check;
mod disk;
mod histories;
mod restore;
