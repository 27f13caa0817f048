//! What a core has to say to whoever runs the node: lines on stderr, unless somebody listens on its thread.

use std::cell::RefCell;
use std::fmt::Arguments;

type Listener = Box<dyn FnMut(Arguments<'_>)>;

thread_local! {
    static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

/// From now on `listener` hears what the cores of this thread say, instead of stderr. It must not make a core say
/// something itself.
pub fn listen(listener: impl FnMut(Arguments<'_>) + 'static) {
    LISTENER.with_borrow_mut(|it| *it = Some(Box::new(listener)));
}

/// Says a line.
pub(crate) fn tell(line: Arguments<'_>) {
    LISTENER.with_borrow_mut(|listener| match listener {
        Some(listener) => listener(line),
        None => eprintln!("{line}"),
    });
}

/// Says a line, made as by `format!`.
macro_rules! say {
    ($($line:tt)*) => {
        $crate::words::tell(format_args!($($line)*))
    };
}
pub(crate) use say;
