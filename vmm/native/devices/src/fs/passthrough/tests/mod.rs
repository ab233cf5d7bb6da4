//! Tests of the host half. Most need root, as the device does; without it they say so and pass.

mod basics;
mod credentials;
mod escape;
mod escape_races;
mod fixture;
mod limits;
mod locks;
mod model;
mod model_sides;
mod mounts;
mod shares;
