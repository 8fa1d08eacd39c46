//! One binary of integration tests, so that the dependencies are linked once.

mod allocate;
mod bad_input;
mod browser;
mod command_line;
mod contracts;
mod evaluate;
mod generate;
mod k8s;
mod layers;
mod leak;
mod model;
mod night;
mod report;
mod s3;
mod shop;
mod simulations;
mod small;
mod sql_check;
mod sql_room;
mod sql_tools;
mod statistics;
mod targeting;
mod telemetry;
mod tiny_shop;
mod train;
mod worlds;
