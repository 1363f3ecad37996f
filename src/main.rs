//! Parses arguments, runs a command, turns its error into an exit code.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages, of which an idle process would fill a few per cent: 10 MB for nothing.
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    // Provider keys are in this process' memory: no core dump and no debugger of the same user may show them. A system that
    // refuses is no reason not to serve.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    raise_open_files();
    tollgate::cli::main()
}

/// Each call takes two file descriptors; many systems start processes with 1,024 and allow far more.
fn raise_open_files() {
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limits.maximum, ..limits };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
}
