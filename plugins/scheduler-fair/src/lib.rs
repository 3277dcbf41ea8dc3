//! scheduler-fair.
