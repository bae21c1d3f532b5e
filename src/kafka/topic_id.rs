//! A topic's own id. librdkafka knows it; its Rust wrapper does not pass it on.

use rdkafka::{bindings as rd, client::NativeClient};
use std::{
    ffi::{CStr, CString, c_char, c_int},
    ptr,
    time::Duration,
};

/// Frees what librdkafka gave us, whatever way the function is left.
struct Owned<T>(*mut T, unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the matching constructor and is freed once.
        unsafe { (self.1)(self.0) }
    }
}

/// The id of a topic, which changes when it is deleted and made again. `None` when the broker does
/// not tell (before Kafka 3.1, librdkafka's mock).
#[must_use]
pub fn topic_id(client: &NativeClient, topic: &str, timeout: Duration) -> Option<String> {
    let name = CString::new(topic).ok()?;
    let mut names: [*const c_char; 1] = [name.as_ptr()];
    let millis = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: all objects are made here, checked for null, outlive their use and are freed by
    // `Owned`; `names` outlives the collection; what the result points to is read before the
    // event is freed.
    unsafe {
        let queue = Owned(rd::rd_kafka_queue_new(client.ptr()), rd::rd_kafka_queue_destroy);
        let collection = Owned(
            rd::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1),
            rd::rd_kafka_TopicCollection_destroy,
        );
        let options = Owned(
            rd::rd_kafka_AdminOptions_new(
                client.ptr(),
                rd::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
            ),
            rd::rd_kafka_AdminOptions_destroy,
        );
        if queue.0.is_null() || collection.0.is_null() || options.0.is_null() {
            return None;
        }
        let mut message = [0 as c_char; 256];
        rd::rd_kafka_AdminOptions_set_request_timeout(
            options.0,
            millis,
            message.as_mut_ptr(),
            message.len(),
        );
        rd::rd_kafka_DescribeTopics(client.ptr(), collection.0, options.0, queue.0);
        let event = rd::rd_kafka_queue_poll(queue.0, millis);
        if event.is_null() {
            return None;
        }
        let event = Owned(event, rd::rd_kafka_event_destroy);
        let result = rd::rd_kafka_event_DescribeTopics_result(event.0);
        if result.is_null() {
            return None;
        }
        let mut count = 0;
        let topics = rd::rd_kafka_DescribeTopics_result_topics(result, ptr::addr_of_mut!(count));
        if topics.is_null() || count != 1 {
            return None;
        }
        let error = rd::rd_kafka_TopicDescription_error(*topics);
        if !error.is_null()
            && rd::rd_kafka_error_code(error) != rd::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            return None;
        }
        let id = rd::rd_kafka_TopicDescription_topic_id(*topics);
        if id.is_null() {
            return None;
        }
        let text = CStr::from_ptr(rd::rd_kafka_Uuid_base64str(id)).to_string_lossy().into_owned();
        // All zeros: the broker has no id for it.
        (!text.is_empty() && !text.chars().all(|c| c == 'A')).then_some(text)
    }
}
