//! A realm in a program whose global allocator is not a `Router`.

use memsnap_heap::Realm;

#[test]
fn a_realm_without_a_router_is_refused() {
    // SAFETY: the closure is not called.
    let error = unsafe { Realm::new(|| 1) }.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
    assert!(error.to_string().contains("#[global_allocator]"), "{error}");
}
