#![doc = include_str!("README.md")]

pub mod contender;
pub mod fixture;
pub mod isolation;
pub mod measure;
pub mod shop;
pub mod walk;
