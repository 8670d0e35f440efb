//! Real processes under faults: a cluster of `pflex` daemons is started, used, hurt and watched from outside.
//!
//! Nothing here is of the product: the cluster is driven by its command line and its NBD port only, so a bug shared by
//! both sides cannot hide itself. Reading order: [`history`] (what is recorded), [`workload`] with [`nbd`] (who reads and
//! writes), [`nemesis`] with [`cluster`] (who hurts), [`checker`] (who judges), and [`run`], which puts them together.
//!
//! Time never decides a verdict: the checkers use only the order in which events were recorded.

pub mod checker;
pub mod cluster;
pub mod history;
pub mod nbd;
pub mod nemesis;
pub mod run;
pub mod workload;
