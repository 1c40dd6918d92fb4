//! Points as NBD exports: which there are ([`catalog`]), one of them as an open disk ([`disk`]), where
//! clients find them ([`address`]), and how much they may take ([`room`]).

pub(crate) mod address;
pub(crate) mod catalog;
pub(crate) mod disk;
pub(crate) mod room;
