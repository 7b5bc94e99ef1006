//! Every table that this CPU runs, against the scalar one.

use quell_kernels::Kernels;
use quell_kernels::conformance;

#[test]
fn every_table_conforms() {
    let mut tables = 0;
    for table in Kernels::available() {
        let cases = conformance::check(table, &mut |line| println!("{line}"));
        let cases = cases.unwrap_or_else(|failure| panic!("{failure}"));
        println!("{}: {cases} cases", table.name);
        tables += 1;
    }
    assert!(tables >= 1);
}
