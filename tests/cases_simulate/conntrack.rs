//! The table `conntrack_cleanup`, decided. `cases_packets` holds the kernel to it.

use serde_json::Value;

use crate::flows::tracked::Table;

/// A row's name, and whether it holds.
type Row = (String, Result<(), String>);

/// Runs every row.
pub(crate) fn check(case: &Value) -> Result<Vec<Row>, String> {
    let table = Table::read(case)?;
    let run = |row| match row {
        Ok(crate::flows::tracked::Row { name, flow, is_to_be_forgotten }) => {
            let is_right = table.view.is_stale(&flow) == is_to_be_forgotten;
            let expected = if is_to_be_forgotten { "expected delete" } else { "expected keep" };
            (name, if is_right { Ok(()) } else { Err(expected.to_owned()) })
        }
        Err((name, error)) => (name, Err(error)),
    };
    Ok(table.rows.into_iter().map(run).collect())
}
