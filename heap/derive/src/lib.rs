//! The derive macros of the crate [`memsnap-heap`](https://docs.rs/memsnap-heap).

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Fields, GenericParam, Lifetime, parse_macro_input, parse_quote};

/// Implements `memsnap_heap::Snap` for a struct or an enum.
///
/// All fields and type parameters must implement it. A type with a lifetime parameter is for heaps of that brand. The
/// documentation of `Snap` lists what the type promises. A type that implements `Drop` is refused.
#[proc_macro_derive(Snap)]
pub fn derive_snap(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input, "Snap").unwrap_or_else(Error::into_compile_error).into()
}

/// Implements `memsnap_heap::Persist` for a struct or an enum that implements `Snap`.
///
/// All fields and type parameters must implement it.
#[proc_macro_derive(Persist)]
pub fn derive_persist(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    expand(&input, "Persist").unwrap_or_else(Error::into_compile_error).into()
}

fn expand(input: &DeriveInput, name_of_trait: &str) -> syn::Result<TokenStream> {
    let marker = format_ident!("{name_of_trait}");
    let name = &input.ident;
    let mut lifetimes = input.generics.lifetimes();
    let brand = lifetimes.next().map(|parameter| parameter.lifetime.clone());
    if let Some(second) = lifetimes.next() {
        return Err(Error::new_spanned(
            second,
            format!(
                "`{name_of_trait}` can be derived for types with one lifetime, which is the brand of their heap; values in a \
                 heap cannot borrow from elsewhere"
            ),
        ));
    }

    let mut generics = input.generics.clone();
    let brand = brand.unwrap_or_else(|| {
        let brand: Lifetime = parse_quote!('memsnap_heap);
        generics.params.insert(0, parse_quote!(#brand));
        brand
    });
    for parameter in &mut generics.params {
        if let GenericParam::Type(parameter) = parameter {
            parameter.bounds.push(parse_quote!(::memsnap_heap::#marker<#brand>));
        }
    }
    let arms = arms(input, &brand, name_of_trait)?;
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let (own_impl_generics, type_generics, own_where_clause) = input.generics.split_for_impl();
    let no_drop = format_ident!("{name}ImplementsDropAndCannotDerive{name_of_trait}");
    Ok(quote! {
        const _: () = {
            // SAFETY: whoever derives the trait promises its conditions. `check` below demands that all fields keep them.
            #[automatically_derived]
            unsafe impl #impl_generics ::memsnap_heap::#marker<#brand> for #name #type_generics #where_clause {}

            // The patterns have all fields, also those that another macro has added to the type.
            #[allow(dead_code, non_snake_case, unused_variables, clippy::all)]
            fn check #impl_generics (value: &#name #type_generics) #where_clause {
                fn field<'field, T: ::memsnap_heap::#marker<'field> + ?::core::marker::Sized>(_: *const T) {}
                match *value { #(#arms)* }
            }

            // Two implementations apply to a type that implements `Drop`, which the compiler refuses.
            #[allow(dead_code)]
            trait #no_drop {}
            #[allow(drop_bounds)]
            impl<T: ::core::ops::Drop + ?::core::marker::Sized> #no_drop for T {}
            impl #own_impl_generics #no_drop for #name #type_generics #own_where_clause {}
        };
    })
}

/// Returns an arm for each variant, which demands the trait of all its fields.
fn arms(input: &DeriveInput, brand: &Lifetime, name_of_trait: &str) -> syn::Result<Vec<TokenStream>> {
    let name = &input.ident;
    match &input.data {
        Data::Struct(data) => Ok(vec![arm(&quote!(#name), &data.fields, brand)]),
        Data::Enum(data) if data.variants.is_empty() => Ok(vec![quote!(_ => {})]),
        Data::Enum(data) => Ok(data
            .variants
            .iter()
            .map(|variant| {
                let variant_name = &variant.ident;
                arm(&quote!(#name::#variant_name), &variant.fields, brand)
            })
            .collect()),
        Data::Union(_) => Err(Error::new_spanned(
            name,
            format!(
                "`{name_of_trait}` cannot be derived for unions; implement it with `unsafe impl` if the type keeps its promises"
            ),
        )),
    }
}

fn arm(path: &TokenStream, fields: &Fields, brand: &Lifetime) -> TokenStream {
    let members = fields.members();
    let bindings: Vec<_> = (0..fields.len()).map(|index| format_ident!("field_{index}")).collect();
    // Errors are shown at the type of the field.
    let demands = fields
        .iter()
        .zip(&bindings)
        .map(|(field, binding)| quote_spanned!(field.ty.span() => field::<#brand, _>(#binding);));
    quote!(#path { #(#members: ref #bindings,)* } => { #(#demands)* })
}
