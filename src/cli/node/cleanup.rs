//! `steelyard node --cleanup`: takes from the kernel what agents of earlier runs have left.

use std::io::Write;
use std::path::Path;

use super::NodeError;
use super::alone::Alone;
use crate::cli::prepare::put_back;
use crate::datapath::apply::Programmer;
use crate::datapath::nft::layout::table;

/// Removes it, puts the settings back that `steelyard prepare` changed, and says what it did. Where nothing is left nothing happens.
pub(super) fn run(state_file: &Path) -> Result<(), NodeError> {
    let Some(_alone) = Alone::take().map_err(NodeError::Alone)? else { return Err(NodeError::AgentRuns) };
    let deleted = Programmer::new().and_then(|mut programmer| programmer.cleanup()).map_err(NodeError::Cleanup)?;
    let mut lines: Vec<String> = deleted.into_iter().map(|family| format!("deleted table {}", table(family))).collect();
    if lines.is_empty() {
        lines.push("no nf_tables table of Steelyard is left".to_owned());
    }
    writeln!(std::io::stdout().lock(), "{}", lines.join("\n")).map_err(NodeError::Say)?;
    Ok(put_back(state_file)?)
}
