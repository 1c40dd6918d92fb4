//! Points as NBD exports: which there are ([`catalog`]), one of them as an open disk ([`disk`]), and
//! where clients find them ([`address`]).

pub(crate) mod address;
pub(crate) mod catalog;
pub(crate) mod disk;
