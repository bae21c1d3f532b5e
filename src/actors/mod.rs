//! The actors, in the order of the flow. Each is a thin shell: handlers move messages, the rules
//! are in [`crate::protocol`] and in plain structs beside each actor.

pub mod batch_accumulator;
pub mod duckdb_writer;
pub mod feeder;
pub mod file_upload;
pub mod generator;
pub mod kafka_ingest;
pub mod python_worker_supervisor;
pub mod redis_queue;
pub mod replayer;
pub mod transform_deployer;
pub mod worker_semaphore;

pub use batch_accumulator::BatchAccumulator;
pub use duckdb_writer::DuckDbWriter;
pub use file_upload::FileUpload;
pub use generator::Generator;
pub use kafka_ingest::KafkaIngest;
pub use python_worker_supervisor::PythonWorkerSupervisor;
pub use redis_queue::{PlainWrites, RedisQueue, RedisQueueServer};
pub use replayer::Replayer;
pub use transform_deployer::TransformDeployer;
pub use worker_semaphore::WorkerSemaphore;
