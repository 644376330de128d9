//! Attaches and detaches with Debian's librust-loopdev-dev.
use std::{env, io, time::Instant};

use loopdev::LoopControl;

fn cycle(path: &str) -> io::Result<i64> {
    let start = Instant::now();
    let device = LoopControl::open()?.next_free()?;
    device.attach_file(path)?;
    device.detach()?;
    drop(device); // the kernel detaches when it is closed
    Ok(start.elapsed().as_nanos() as i64)
}

fn main() {
    let path = env::args().nth(1).expect("a file");
    for line in io::stdin().lines() {
        let count: usize = line.unwrap().trim().parse().expect("a number of cycles");
        let answers: Vec<String> = (0..count)
            .map(|_| cycle(&path).unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(1))))
            .map(|answer| answer.to_string())
            .collect();
        println!("{}", answers.join(" "));
    }
}
