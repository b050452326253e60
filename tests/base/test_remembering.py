import gc
import weakref

from jaxremat.base.remembering import while_alive


class Owner:
    pass


def test_results_are_worked_out_once_and_forgotten_with_their_owner():
    asked = []

    @while_alive
    def counted(owner, number):
        asked.append(number)
        return [number]

    owner = Owner()
    result = counted(owner, 1)
    assert counted(owner, 1) is result and counted(owner, 2) == [2] and counted(Owner(), 1) is not result
    assert asked == [1, 2, 1]
    gone = weakref.ref(owner)
    del owner
    gc.collect()
    assert gone() is None
